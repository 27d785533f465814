// How large the numbers of a learning op may be, so that what it stores is a number. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "network.h"

namespace ceprop {

// The product of two, summed over 2^16 samples and more, stays a number.
template <class T>
constexpr T largest_allowed = sizeof(T) == 4 ? T(0x1p56f) : T(0x1p500);

// A bound of states, inputs and targets below which no update overflows, for kernels that do not measure how large
// their updates are. A contrast sums two products of differences over the batch and over a map's positions.
template <class T>
T largest_state(const Network<T>& network, double fastest, double updates, double growth) {
  int64_t positions = network.shape.input.height * network.shape.input.width;
  for (const MapShape& map : network.shape.layers) positions = std::max(positions, map.height * map.width);
  const double most = sizeof(T) == 4 ? 0x1p120 : 0x1p1000;
  if (!(growth <= most / largest_allowed<T>)) return 0;
  const double sum = 4 * static_cast<double>(positions) * updates * fastest;
  return static_cast<T>(std::min(static_cast<double>(largest_allowed<T>), std::sqrt(most / sum)));
}
template <class T>
T largest_state(const RelaxCall<T>&) {
  return largest_allowed<T>;
}
template <class T>
T largest_state(const EpCall<T>& call) {
  const double updates = (call.accumulate ? call.nudged_steps : 1) * (call.symmetric ? 2.0 : 1.0);
  return largest_state(call.network, std::max(1 / std::abs(call.nudge.beta), 1.0), updates, 1);
}
template <class T>
T largest_state(const CepCall<T>& call) {
  const double updates = call.nudged_steps * (call.symmetric ? 2.0 : 1.0);
  const double fastest = *std::max_element(call.lr.begin(), call.lr.end());
  // A weight grows by its decay, where that is above 2 / rate.
  const double growth = std::pow(std::max(1.0, std::abs(1 - fastest * call.weight_decay)), updates);
  return largest_state(call.network, fastest * std::max(1 / std::abs(call.nudge.beta), 1.0), updates, growth);
}

}  // namespace ceprop
