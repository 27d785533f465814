// Whether a learning op may store what it computes, without a word between host and device and without a barrier more:
// every thread looks at the numbers that it makes and remembers whether one was none or too large; before the last
// barrier it says so. After that all blocks store what is learnt at the end, or take back what has been stored.
#pragma once

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

template <class T>
class Sanity {
 public:
  __device__ Sanity(const Given<T>& given, int* broken) : p_(given), broken_(broken) {}

  // Before the first barrier.
  __device__ void begin() const {
    if (blockIdx.x == 0 && threadIdx.x == 0) *broken_ = 0;
  }

  __device__ void look(T number) { note(fabs(number) <= p_.largest); }
  __device__ void note(bool holds) { holds_ = holds_ && holds; }

  // Before a barrier.
  __device__ void tell() const {
    if (!holds_) atomicExch(broken_, 1);
  }
  // After it: the same for all threads.
  __device__ bool holds() const { return __ldcg(broken_) == 0; }

 private:
  const Given<T>& p_;
  int* broken_;
  bool holds_ = true;
};

// body(array, count, before) for all that an op stores before its end, C-EP's parameters, or that nothing else fills,
// EP's gradients; `before` has room for what it was. `learning` tells what C-EP moves in place, and how many numbers
// there are: moves(c), weights(c), biases(c) of connection c.
template <class Problem, class Learning, class Body>
__device__ __forceinline__ void for_each_stored(const Problem& p, const Learning& learning, const Body& body) {
  const bool ep = p.stages.op == Op::ep_step;
  auto* before = p.workspace.before;
  const auto one = [&](auto* array, int64_t count) {
    body(array, count, before);
    before += count;
  };
  for (int c = 0; c < p.layers + (ep && p.readout); ++c) {
    if (auto* biases = (ep ? p.bias_gradients : p.biases)[c]) one(biases, learning.biases(c));
    if (!ep && !learning.moves(c)) continue;
    one((ep ? p.gradients : p.weights)[c], learning.weights(c));
    if (p.free_feedback && c > 0 && c < p.layers)
      one((ep ? p.feedback_gradients : p.feedback)[c - 1], learning.weights(c));
  }
}

// What C-EP's parameters are that move before the end, by all blocks. No barrier.
template <class Problem, class Learning>
__device__ void remember(const Problem& p, const Learning& learning) {
  for_each_stored(p, learning, [&](const auto* array, int64_t count, auto* before) {
    const int64_t first = int64_t(blockIdx.x) * block_threads + threadIdx.x;
    for (int64_t i = first; i < count; i += int64_t(p.layout.blocks) * block_threads) before[i] = array[i];
  });
}
// Nothing is stored: these are as they were, EP's gradients zero, and the op says so by its steps, of so many phases.
template <class Problem, class Learning>
__device__ void take_back(const Problem& p, const Learning& learning, int phases) {
  for_each_stored(p, learning, [&](auto* array, int64_t count, const auto* before) {
    const int64_t first = int64_t(blockIdx.x) * block_threads + threadIdx.x;
    for (int64_t i = first; i < count; i += int64_t(p.layout.blocks) * block_threads)
      array[i] = p.stages.op == Op::ep_step ? 0 : before[i];
  });
  if (blockIdx.x == 0 && threadIdx.x == 0)
    for (int phase = 0; phase < phases; ++phase) p.steps_used[phase] = -1;
}

}  // namespace ceprop::cuda
