// Some steps of a chain whose weights rest, all samples of it, for a kernel that takes them at once. No torch, no CUDA.
#pragma once

#include <vector>

#include "../model/network.h"

namespace ceprop::aten {

template <class T>
struct WholePhase {
  int64_t samples() const { return both_ways ? 2 * batch : batch; }

  const Network<T>& network;              // but for its parameters
  std::vector<const T*> weights, biases;  // by connection, of biases null for none
  int64_t batch;
  bool both_ways;   // there are 2 * batch samples, of which the second half is pulled the other way
  const T* drive;   // [samples, n_0], what the input brings, with the bias
  const T* target;  // [batch, classes]
  Nudge nudge;      // beta 0: none
  int steps;
  std::vector<const T*> state, seen;  // of every layer, [samples, n_l]
  std::vector<T*> next, next_seen;    // out; `seen` and `next_seen`: of energy dynamics alone
  T limit;
  int* moves;  // becomes 1 where a unit moves by more than the limit in the last step; null: nobody asks
  T largest;
  int* broken;  // becomes 1 where a drive or a state is none, or a state is larger
};

}  // namespace ceprop::aten
