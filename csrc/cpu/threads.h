// How many threads a call gets. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../model/network.h"

namespace ceprop {

// Returns how many threads can run at once: as many as there are CPUs that this process may use, or fewer where its
// control group has a lower quota.
int allowed_threads();

// Whether this process was forked from one whose threads are not here: OpenMP would wait for them.
bool was_forked();

// Whether calls get as many threads as torch is set to, whatever they are worth: the environment variable
// CEPROP_CPU_OVERSUBSCRIBE is 1, as tests set it.
bool oversubscribes();

// About how many multiplications lie between two barriers of the call: its steps share what is done once.
template <class T>
double work_between_barriers(const Network<T>& network, int64_t batch, double steps) {
  constexpr double activation = 32, pack_and_store = 3;
  const NetworkShape& shape = network.shape;
  const double samples = static_cast<double>(batch);
  const auto weights = [&](int c) { return static_cast<double>(shape.weight_count(c)); };
  const auto positions = [&](int c) { return static_cast<double>(shape.position_count(c)); };
  double step = 0, once = weights(0) * (pack_and_store + samples * positions(0));
  for (int c = 0; c < shape.connection_count(); ++c) {
    step += samples * activation * static_cast<double>(shape.units_above(c));
    if (c == 0) continue;
    step += 2 * samples * weights(c) * positions(c);
    once += pack_and_store * weights(c);
  }
  return (steps * step + once) / (steps + 4);
}

// Returns so few threads that each has something to do between two barriers, and `asked` at most.
inline int threads_worth(double work_between_barriers, int asked) {
  constexpr double of_a_thread = 32768;  // some microseconds, where a barrier takes one
  return static_cast<int>(std::clamp(std::round(work_between_barriers / of_a_thread), 1.0, static_cast<double>(asked)));
}

}  // namespace ceprop
