// Between which states contrasts are taken, which of them count, and how their sums enter what is learnt.
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

// Nudged phases.
template <class T>
__device__ __forceinline__ int phases_of(const Given<T>& p) {
  return p.symmetric ? 2 : 1;
}

// EP in a vector field: sums of the contrasts of consecutive steps. Else they telescope to that between the ends.
template <class T>
__device__ __forceinline__ bool accumulates(const Given<T>& p) {
  return p.accumulate && p.free_feedback && !p.shared_update;
}

// How C-EP takes the contrast of connection c, over `divisor` and summed over the batch.
template <class T>
__device__ __forceinline__ Blend<T> blend_of(const Given<T>& p, int c, double divisor) {
  return {T(p.rate[c] * p.weight_decay), T(p.rate[c] / (divisor * double(p.batch))), false};
}

}  // namespace ceprop::cuda
