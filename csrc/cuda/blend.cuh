// Between which states a contrast is taken, and how its sums enter what is learnt.
#pragma once

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

// The fields a contrast is taken between, and the one that stands for r* in vector fields.
struct Between {
  int earlier, later, fixed;
};

// How a sum enters a number: out = out - decay out + scale sum; fresh: out = scale sum.
template <class T>
struct Blend {
  T decay, scale;
  bool fresh;

  __device__ T operator()(T out, T sum) const { return fresh ? scale * sum : out + (scale * sum - decay * out); }
};

// How C-EP takes the contrast of connection c, over `divisor` and summed over the batch.
template <class T>
__device__ __forceinline__ Blend<T> blend_of(const Given<T>& p, int c, double divisor) {
  return {T(p.rate[c] * p.weight_decay), T(p.rate[c] / (divisor * double(p.batch))), false};
}

}  // namespace ceprop::cuda
