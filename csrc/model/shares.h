// How work is shared whose items differ in cost, by workers on a CPU or blocks on a GPU.
#pragma once

#include <cstdint>
#include <vector>

namespace ceprop {

// Returns the first item of share `index` of `count`. Item i costs cost[i + 1] - cost[i] (running sums from 0) and goes
// to the share of the total in which its middle lies. Share `count` begins behind the last item.
inline int64_t first_of_share(const std::vector<double>& cost, int index, int count) {
  const auto items = static_cast<int64_t>(cost.size()) - 1;
  if (index == count) return items;
  const double limit = cost.back() * index / count;
  int64_t item = 0;
  while (item < items && (cost[item] + cost[item + 1]) / 2 < limit) ++item;
  return item;
}

}  // namespace ceprop
