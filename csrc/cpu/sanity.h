// Whether a learning op may store what it has computed: not if a number of the call, a state or a parameter that has
// moved is none, is infinite, or is so large that a sum of products might be. What is stored is then a number.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../model/largest.h"
#include "set.h"
#include "team.h"

namespace ceprop::CEPROP_SET {

// Returns the largest magnitude in rows of numbers, NaN if one is none. It compares bits, whose order is that of
// magnitudes, with infinity and NaN beyond: compilers turn that into vector code.
template <class T>
T largest_of(const T* rows, int64_t count, int64_t valid, int64_t stride) {
  using Bits = typename ExpFormat<T>::Bits;
  constexpr Bits magnitude = std::numeric_limits<Bits>::max();
  if (valid == stride) valid = count * stride, count = 1;
  Bits most = 0;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t i = 0; i < valid; ++i) {
      const Bits bits = bits_of(rows[row * stride + i]) & magnitude;
      most = bits > most ? bits : most;
    }
  return of_bits(most);
}

template <class T>
class Sanity {
 public:
  enum Kind { inputs, states, parameters, kinds };  // the inputs are x and targets

  explicit Sanity(int workers) : seen_(workers) {}

  // Forgets what a worker has seen. No worker may still ask for it.
  void clear(const Worker& worker) { seen_[worker.index] = {}; }

  // Notes a magnitude that a worker has seen; all of them are known after a barrier.
  void note(const Worker& worker, Kind kind, T largest) {
    T& most = seen_[worker.index].largest[kind];
    if (most == most && !(largest <= most)) most = largest;
  }

  // Notes this worker's samples of x [B, inputs] and the target [B, classes], as they were given.
  void note_inputs(const Worker& worker, const Batch<T>& batch, int64_t n_in, int64_t classes) {
    const Range rows = worker.share(batch.size);
    const auto note_rows = [&](const T* from, int64_t width) {
      note(worker, inputs, largest_of(from + rows.begin * width, rows.end - rows.begin, width, width));
    };
    note_rows(batch.x, n_in);
    if (batch.target) note_rows(batch.target, classes);
  }

  T largest(Kind kind) const {
    T most = 0;
    for (const Seen& seen : seen_) {
      if (seen.largest[kind] != seen.largest[kind]) return seen.largest[kind];
      most = std::max(most, seen.largest[kind]);
    }
    return most;
  }

  // Whether all is as it should be, `update` among it: the largest number that is added to what is stored.
  bool holds(double update) const {
    for (int kind = 0; kind < kinds; ++kind)
      if (!(largest(static_cast<Kind>(kind)) <= largest_allowed<T>)) return false;
    return update <= static_cast<double>(largest_allowed<T>);
  }

 private:
  // These are aligned, so that workers do not write to the same line.
  struct alignas(64) Seen {
    T largest[kinds] = {};
  };
  std::vector<Seen> seen_;
};

}  // namespace ceprop::CEPROP_SET
