// How long a step takes by a layout, by arithmetic: planners choose by it. No torch, no CUDA.
#pragma once

#include <algorithm>

#include "../block/pace.h"
#include "layout.h"

namespace ceprop::cuda::teams {

// What a plan depends on of a call.
struct Shape {
  const NetworkShape& network;
  int64_t batch;
  int64_t number_bytes;  // 4 or 8
  bool continual;        // every nudged step learns: weights move,
  bool gathers;          // or EP adds up what they would move by
  bool tolerance;        // phases may end early, for all samples at once
};

namespace planning {

inline int octets_of(const Shape& shape, int layer) {
  return static_cast<int>((shape.network.layers[layer].units() + octet - 1) / octet);
}
// Returns what an octet of a layer reads in a step: the layer below, if that is not the input, and the layer above.
inline Sources sources_of(const Shape& shape, int layer) {
  Sources all{};
  for (const int neighbour : {layer - 1, layer + 1}) {
    if (neighbour < 0 || neighbour > shape.network.output) continue;
    const Sources of = teams::sources_of(static_cast<int>(shape.network.layers[neighbour].units()));
    all = {all.chunks + of.chunks, all.pairs + of.pairs};
  }
  return all;
}
inline int64_t depth_of(const Shape& shape, int layer) { return padded(sources_of(shape, layer)); }
inline int jobs_of(const Layout& layout, int block) {
  return layout.first_of_block[block + 1] - layout.first_of_block[block];
}

// Returns the microseconds of a step of the samples that a plan has at once, estimated; `moves`: weights move at it.
inline double step_microseconds(const Shape& shape, const Layout& layout, bool moves) {
  using namespace pace::teams;
  const double of_number = shape.number_bytes == 4 ? 1 : pace::of_float64;
  const auto turns = [](int items, int workers) { return (items + workers - 1) / workers; };
  double busiest = 0;
  bool alone_in_all = true;  // warps copy
  for (int block = 0; block < layout.blocks; ++block) {
    const int jobs = jobs_of(layout, block);
    if (jobs == 0) continue;
    double all = 0, longest = 0, all_moved = 0, longest_moved = 0;
    int parts = 0;
    for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i) {
      const Sources sources = sources_of(shape, layout.layer_of(i));
      const double products = sources.chunks * (chunk + chunk_of_sample * layout.samples) + sources.pairs * pair;
      const double of_job = of_octet + (sources.chunks > 0 ? adding_up : 0) + products * of_number;
      all += of_job;
      longest = std::max(longest, of_job);
      const auto moved = [&](double of_sample) {
        return layout.groups * (part + of_sample * layout.samples * of_number);
      };
      all_moved += sources.chunks * moved(chunk_moved) + sources.pairs * moved(pair_moved);
      longest_moved = std::max(longest_moved, moved(sources.chunks > 0 ? chunk_moved : pair_moved));
      parts += sources.chunks + sources.pairs;
    }
    // An octet and a group is an item.
    const Shares warps = shares_of(jobs, layout.groups, layout.warps);
    alone_in_all = alone_in_all && layout.copies_alone(warps);
    int in_turn = 0, of_scheduler[pace::schedulers] = {};  // items of a warp, and of a scheduler's warps
    for (int warp = 0; warp < warps.job_warps * warps.group_warps; ++warp) {
      const int items = turns(jobs - warp % warps.job_warps, warps.job_warps) *
                        turns(layout.groups - warp / warps.job_warps, warps.group_warps);
      in_turn = std::max(in_turn, items);
      of_scheduler[warp % pace::schedulers] += items;
    }
    const int most = *std::max_element(of_scheduler, of_scheduler + pace::schedulers);
    double of_block = std::max(most * all / jobs * issue, in_turn * (alone + alone_issue * longest));
    if (moves)
      of_block += std::max((all_moved / pace::schedulers + most * constant) * issue,
                           turns(parts, layout.warps) * (alone + longest_moved) + in_turn * constant_alone);
    busiest = std::max(busiest, of_block);
  }
  const double copied = double(layout.groups) * layout.copy / pace::copied_of_clock;
  double clocks = busiest + (layout.kind == TeamKind::cluster ? pace::exchange : pace::barrier);
  if (layout.kind == TeamKind::grid && alone_in_all)
    clocks = std::max(busiest, copied) + pace::copying + pace::grid_barrier;
  else if (layout.kind == TeamKind::grid)
    clocks += pace::grid_barrier + pace::copying * turns(layout.groups, layout.copied_groups) + copied;
  return clocks / pace::clocks_of_a_microsecond * shape.network.turn_count();
}

}  // namespace planning

}  // namespace ceprop::cuda::teams
