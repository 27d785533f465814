// Whether a learning op may store what it computes, without a word between host and device and without a barrier more:
// every thread looks at the numbers that it makes and remembers whether one was none or too large; before the last
// barrier it says so. After that all blocks store what is learnt, or nothing.
#pragma once

#include "../device.h"
#include "problem.h"

namespace ceprop::cuda::teams {

template <class T>
class Sanity {
 public:
  __device__ __forceinline__ Sanity(const Problem<T>& given, int* broken)
      : largest_(hidden(given.largest)), broken_(broken) {}

  // Before the first barrier.
  __device__ __forceinline__ void begin() const {
    if (blockIdx.x == 0 && threadIdx.x == 0) *broken_ = 0;
  }

  __device__ __forceinline__ void look(T number) { note(fabs(number) <= largest_); }
  __device__ __forceinline__ void note(bool holds) { holds_ = holds_ && holds; }

  // Before a barrier.
  __device__ __forceinline__ void tell() const {
    if (!holds_) atomicExch(broken_, 1);
  }
  // After it: the same for all threads.
  __device__ __forceinline__ bool holds() const { return __ldcg(broken_) == 0; }

 private:
  const T largest_;
  int* broken_;
  bool holds_ = true;
};

}  // namespace ceprop::cuda::teams
