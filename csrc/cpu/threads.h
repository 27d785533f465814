// How many threads a call gets. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../model/network.h"

namespace ceprop {

// That can run at once: the CPUs that this process may use, less where its control group has a quota of fewer.
int allowed_threads();

// Whether this process was forked from one whose threads are not here: OpenMP would wait for them.
bool was_forked();

// Whether calls get as many threads as torch is set to, whatever they are worth: the environment variable
// CEPROP_CPU_OVERSUBSCRIBE is 1, as tests set it.
bool oversubscribes();

// Multiplications between two barriers of the call, about: its steps share what is done once.
template <class T>
double work_between_barriers(const Network<T>& network, int64_t batch, double steps) {
  constexpr double activation = 32, pack_and_store = 3;
  const double samples = static_cast<double>(batch);
  const auto weights = [&](size_t c) {
    if (c < network.convolutions.size()) {
      const std::array<int64_t, 2>& kernel = network.convolutions[c].kernel;
      return static_cast<double>(network.maps[c].channels * kernel[0] * kernel[1] * network.maps[c + 1].channels);
    }
    return static_cast<double>(network.widths[c]) * static_cast<double>(network.widths[c + 1]);
  };
  const auto positions = [&](size_t c) {
    if (c >= network.convolutions.size()) return 1.0;
    const MapShape& above = network.maps[c + 1];
    return static_cast<double>(above.height * above.width * network.convolutions[c].places());
  };
  double step = 0, once = weights(0) * (pack_and_store + samples * positions(0));
  for (size_t c = 0; c < network.weights.size(); ++c) {
    step += samples * activation * static_cast<double>(network.widths[c + 1]);
    if (c == 0) continue;
    step += 2 * samples * weights(c) * positions(c);
    once += pack_and_store * weights(c);
  }
  return (steps * step + once) / (steps + 4);
}

// Few enough that each has something to do between two barriers; `asked` at most.
inline int threads_worth(double work_between_barriers, int asked) {
  constexpr double of_a_thread = 32768;  // some microseconds, where a barrier takes one
  return static_cast<int>(std::clamp(std::round(work_between_barriers / of_a_thread), 1.0, static_cast<double>(asked)));
}

}  // namespace ceprop
