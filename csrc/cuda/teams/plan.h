// This decides which team runs a call on a device, and how the network lies in it. No torch, no CUDA.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "../../model/shares.h"
#include "../../model/stages.h"
#include "../block/properties.h"
#include "estimate.h"

namespace ceprop::cuda::teams {

// How many numbers of global memory the kernels note things in: one in four, then settled flags.
inline constexpr int words_of_workspace = 4 + 2 * most_blocks;

struct Plan {
  Layout layout;            // while weights rest
  Layout moving;            // C-EP: of the one team that has all samples, while they move
  int blocks, warps;        // of the launch
  int64_t shared_bytes;     // of a block
  int64_t workspace_bytes;  // of global memory
};

// This is a plan, or says why there is none.
using Planned = std::variant<Plan, std::string>;

// Returns why no team runs a call like this on a chain of layers, or nothing if one may.
inline std::string obstacle_of(const NetworkShape& shape) {
  if (shape.has_convolutions()) return "these teams take dense layers";
  if (shape.has_readout()) return "teams have no readout";
  if (shape.layer_count() > most_layers)
    return "the CUDA kernels take networks of at most " + std::to_string(most_layers) + " layers, got " +
           std::to_string(shape.layer_count());
  return "";
}
template <class T>
std::string obstacle_of(const RelaxCall<T>& call) {
  return teams::obstacle_of(call.network.shape);
}
template <class T>
std::string obstacle_of(const EpCall<T>& call) {
  if (call.gate != Gate::none && !stages_of(call).steps_learn)
    return "teams have no gate of EP between the ends of its phases";
  return teams::obstacle_of(call.network.shape);
}
template <class T>
std::string obstacle_of(const CepCall<T>& call) {
  return teams::obstacle_of(call.network.shape);
}

// Whether there is a kernel in which one of such teams, where weights rest, moves them as well. Others leave that to
// the grid, which is faster for as many samples as they have.
constexpr bool may_move(TeamKind kind, int samples, int number_bytes) {
  return kind != TeamKind::grid && (number_bytes == 8 || samples == 1 || (kind == TeamKind::cluster && samples == 3));
}

// Returns for which numbers of samples there are kernels.
inline std::vector<int> samples_of_groups(int64_t number_bytes) {
  return number_bytes == 4 ? std::vector{1, 3, 4} : std::vector{2};
}

namespace planning {

inline constexpr int most_octets = 65535;  // numbered in 16 bits

// Gives no block octets of two layers, if that leaves none with more to do: so it reads fewer layers. `cost`: of all
// octets before each.
inline void share_by_layers(Layout& layout, int layers, const std::vector<double>& cost) {
  double most = 0;
  for (int block = 0; block < layout.blocks; ++block)
    most = std::max(most, cost[layout.first_of_block[block + 1]] - cost[layout.first_of_block[block]]);
  std::vector<uint16_t> first{0};
  for (int l = 0; l < layers; ++l) {
    const int begin = layout.first_octet[l], octets = layout.first_octet[l + 1] - begin;
    const int of_block = static_cast<int>(most / (cost[begin + 1] - cost[begin]) + 1e-6);
    if (of_block == 0) return;
    const int blocks = (octets + of_block - 1) / of_block;
    for (int i = 1; i <= blocks; ++i) first.push_back(static_cast<uint16_t>(begin + octets * i / blocks));
  }
  if (static_cast<int>(first.size()) > layout.blocks + 1) return;
  layout.blocks = static_cast<int>(first.size()) - 1;
  std::copy(first.begin(), first.end(), layout.first_of_block);
}

// Gives every block of the team a share of the octets by what they read, and notes who reads whom. `by_layers`: a grid
// has blocks with octets of one layer alone, if it can.
inline void share_octets(const Shape& shape, Layout& layout, bool by_layers) {
  std::vector<double> cost{0};
  std::vector<int> layer_of;
  const int layers = shape.network.layer_count();
  for (int l = 0; l < layers; ++l) {
    layout.first_octet[l] = static_cast<int>(layer_of.size());
    for (int i = 0; i < octets_of(shape, l); ++i) {
      layer_of.push_back(l);
      cost.push_back(cost.back() + 128 + static_cast<double>(depth_of(shape, l)));
    }
  }
  const auto octets = static_cast<int>(layer_of.size());
  for (int l = layers; l <= most_layers; ++l) layout.first_octet[l] = octets;
  for (int block = 0; block <= layout.blocks; ++block)
    layout.first_of_block[block] = static_cast<uint16_t>(
        octets <= layout.blocks ? std::min(block, octets) : first_of_share(cost, block, layout.blocks));
  if (layout.kind == TeamKind::grid) {
    if (by_layers) share_by_layers(layout, layers, cost);
    std::fill(layout.first_of_block + layout.blocks, layout.first_of_block + most_blocks + 1,
              static_cast<uint16_t>(octets));  // of blocks that have no work
    for (int l = 0; l < layers; ++l) layout.readers[l].add(0);
    layout.output_readers.add(0);
    return;
  }
  for (int block = 0; block < layout.blocks; ++block)
    for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i) {
      const int l = layer_of[i];
      if (l > 0) layout.readers[l - 1].add(block);
      if (l + 1 < layers) layout.readers[l + 1].add(block);
      if (l + 1 == layers) layout.output_readers.add(block);
    }
}
inline int most_jobs(const Layout& layout) {
  int most = 0;
  for (int block = 0; block < layout.blocks; ++block) most = std::max(most, jobs_of(layout, block));
  return most;
}

inline int64_t weight_bytes(const Shape& shape, const Layout& layout) {
  int64_t most = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    int64_t numbers = 0;
    for (int l = 0; l < shape.network.layer_count(); ++l) {
      const int begin = std::max<int>(layout.first_octet[l], layout.first_of_block[block]);
      const int end = std::min<int>(layout.first_octet[l] + octets_of(shape, l), layout.first_of_block[block + 1]);
      numbers += std::max(end - begin, 0) * octet * depth_of(shape, l);
    }
    most = std::max(most, numbers);
  }
  return most * shape.number_bytes;
}

// Returns the most bytes that a block reads of a group's states.
inline int64_t most_copied(const Shape& shape, const Layout& layout) {
  int64_t most = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    bool reads[most_layers + 2] = {};  // the layer below, the input's at first
    for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i)
      reads[layout.layer_of(i)] = reads[layout.layer_of(i) + 2] = true;
    int64_t all = 0;
    for (int l = 0; l < shape.network.layer_count(); ++l)
      if (reads[l + 1]) all += layout.states[l + 1] - layout.states[l];
    most = std::max(most, all);
  }
  return most;
}

// Lays out shared memory for `layout.groups` groups, of which about `layout.copied_groups` are copied at once, and at
// most so many warps; returns the bytes.
inline int64_t lay_out(const Shape& shape, Layout& layout, int warps) {
  const int bytes = static_cast<int>(shape.number_bytes), of_octet = octet_bytes(layout.samples, bytes);
  const int layers = shape.network.layer_count(), jobs = most_jobs(layout);
  int64_t buffer = 0;
  for (int l = 0; l < layers; ++l) {
    layout.states[l] = static_cast<int>(buffer);
    buffer += padded(teams::sources_of(static_cast<int>(shape.network.layers[l].units()))) / octet * int64_t(of_octet);
  }
  layout.states[layers] = static_cast<int>(buffer);
  buffer += int64_t(octets_of(shape, shape.network.output)) * of_octet;
  layout.buffer = static_cast<int>(buffer);
  layout.warps = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    const Shares of = shares_of(jobs_of(layout, block), layout.groups, warps);
    layout.warps = std::max(layout.warps, of.job_warps * of.group_warps);
  }
  int64_t next = 0;
  if (layout.kind != TeamKind::grid) {
    layout.buffers = 4 * layout.groups * 16;  // behind two mailboxes a group in each of two channels
    next = layout.buffers + layout.exchange_bytes();
  }
  const auto place = [&](int& at, int64_t size) {
    at = static_cast<int>(next);
    next += size;
  };
  place(layout.jobs, jobs * int64_t(sizeof(Job)));
  place(layout.own, int64_t(jobs) * layout.groups * own_numbers(layout.continual) * 32 * bytes);
  if (layout.continual) {
    place(layout.blends, int64_t(most_layers) * 2 * bytes);
    const int64_t gram = shape.batch * layout.samples_at_once() * bytes;
    layout.gram = -1;
    if (gram <= most_gram_bytes) place(layout.gram, (gram + 15) / 16 * 16);
  }
  if (layout.kind == TeamKind::grid) {
    layout.copy = static_cast<int>(most_copied(shape, layout));
    place(layout.copies, int64_t(layout.copied_steps) * layout.copied_groups * layout.copy);
  }
  const int64_t weights = weight_bytes(shape, layout);
  layout.learns = static_cast<int>(layout.continual && shape.gathers ? weights : 0);
  place(layout.weights, weights + layout.learns);
  return next;
}

struct Laid {
  Layout layout;
  int64_t shared_bytes;
};

// Returns the layout with such teams of so many blocks, a grid of as many as have work, and groups of so many samples.
// It takes as many groups at once as it needs or has room for.
inline std::optional<Laid> try_layout(const Device& device, const Shape& shape, TeamKind kind, int64_t blocks,
                                      int samples, bool continual, bool by_layers) {
  int octets = 0;
  for (int l = 0; l < shape.network.layer_count(); ++l) octets += octets_of(shape, l);
  if (octets > most_octets) return {};
  Laid laid{};
  Layout& layout = laid.layout;
  const bool is_grid = kind == TeamKind::grid;
  layout.kind = kind;
  layout.continual = continual;
  layout.blocks = static_cast<int>(is_grid ? std::min<int64_t>({octets, blocks, most_blocks}) : blocks);
  layout.samples = samples;
  share_octets(shape, layout, by_layers);
  const int at_once = is_grid                   ? 1
                      : kind == TeamKind::block ? std::min(device.multiprocessors, most_blocks)
                                                : device.clusters;
  if (at_once == 0) return {};
  const int64_t groups = (shape.batch + samples - 1) / samples;
  layout.teams = continual ? 1 : static_cast<int>(std::min<int64_t>(at_once, groups));
  const int64_t most = is_grid ? groups : most_groups;
  const int64_t wanted = std::min<int64_t>((groups + layout.teams - 1) / layout.teams, most);
  const auto fits = [&] {
    const int warps = most_warps(static_cast<int>(shape.number_bytes));
    laid.shared_bytes = std::max<int64_t>(lay_out(shape, layout, warps), tile_numbers * shape.number_bytes);
    return laid.shared_bytes <= device.shared_bytes;
  };
  const auto fits_in_parts = [&] {
    // A block of a grid copies all groups at once, or in as few parts as it must. Weights move by two steps.
    layout.copied_groups = layout.groups;
    layout.copied_steps = is_grid ? 1 + continual : 0;
    if (fits()) return true;
    layout.copied_steps = is_grid;
    for (int parts = 1; is_grid && parts <= layout.groups; ++parts) {
      layout.copied_groups = (layout.groups + parts - 1) / parts;
      if (fits()) return true;
    }
    return false;
  };
  for (layout.groups = static_cast<int>(wanted); layout.groups > 0; layout.groups -= std::max(1, layout.groups / 32)) {
    if (fits_in_parts() || continual) break;  // that has all samples at once, or none
  }
  if (laid.shared_bytes > device.shared_bytes || layout.groups <= 0) return {};
  const int64_t at_a_time = int64_t(layout.teams) * layout.samples_at_once();
  layout.rounds = static_cast<int>((shape.batch + at_a_time - 1) / at_a_time);
  const bool meets = continual || shape.tolerance;  // all samples do
  if (layout.exchange_bytes() >= int64_t(1) << 31 || (meets && layout.rounds > 1)) return {};
  if (shape.tolerance && !is_grid) return {};
  return laid;
}

// Returns the faster one of a grid's two ways to share octets.
inline std::optional<Laid> try_layout(const Device& device, const Shape& shape, TeamKind kind, int64_t blocks,
                                      int samples, bool continual) {
  std::optional<Laid> best = try_layout(device, shape, kind, blocks, samples, continual, false);
  if (kind != TeamKind::grid) return best;
  const auto time = [&](const Layout& layout) { return layout.rounds * step_microseconds(shape, layout, continual); };
  const std::optional<Laid> other = try_layout(device, shape, kind, blocks, samples, continual, true);
  if (other && (!best || time(other->layout) < time(best->layout))) return other;
  return best;
}

// Returns the plan by such teams of so many blocks, with groups of so many samples. Weights move in the blocks of one
// of them, or, `by_grid`, in all.
inline std::optional<Plan> try_plan(const Device& device, const Shape& shape, TeamKind kind, int blocks, int samples,
                                    bool by_grid) {
  const auto rests = try_layout(device, shape, kind, blocks, samples, kind == TeamKind::grid && shape.continual);
  if (!rests) return {};
  const Layout& layout = rests->layout;
  Plan plan{layout, {}, layout.blocks * layout.teams, layout.warps, rests->shared_bytes, 0};
  if (shape.continual) {
    if (!by_grid && !may_move(kind, samples, static_cast<int>(shape.number_bytes))) return {};
    const int most = kind == TeamKind::cluster ? device.clusters * blocks : device.multiprocessors;
    const int most_of_group = most_samples(static_cast<int>(shape.number_bytes));
    const auto moves = by_grid ? try_layout(device, shape, TeamKind::grid, most, most_of_group, true)
                               : try_layout(device, shape, kind, blocks, most_of_group, true);
    if (!moves) return {};
    plan.moving = moves->layout;
    plan.warps = std::max(plan.warps, plan.moving.warps);
    plan.shared_bytes = std::max(plan.shared_bytes, moves->shared_bytes);
    const int all = std::max(plan.blocks, plan.moving.blocks);
    plan.blocks = (all + layout.blocks - 1) / layout.blocks * layout.blocks;
    if (kind == TeamKind::grid) plan.layout = plan.moving;
  }
  if (plan.blocks > most_blocks) return {};
  const int64_t exchange = shape.continual ? plan.moving.global_bytes() : layout.global_bytes();
  const int64_t numbers = shape.continual ? shape.batch * (shape.batch + shape.network.layers[0].units()) : 0;
  plan.workspace_bytes = words_of_workspace * int64_t(sizeof(int)) + exchange + numbers * shape.number_bytes;
  return plan;
}

}  // namespace planning

// Returns the fastest plan by arithmetic, for a call that has no obstacle, or why there is none. Of C-EP it counts a
// nudged step for four free ones, about what published trainings have.
inline Planned plan_team(const Device& device, const Shape& shape) {
  using namespace planning;
  const int64_t inputs = shape.network.input.units(), most = int64_t(1) << 31;
  if (inputs * shape.batch >= most || inputs * shape.network.layers[0].units() >= most)
    return "teams take less than 2^31 numbers of a batch, and weights of a connection";
  std::optional<Plan> best;
  double least = 0;
  const auto consider = [&](TeamKind kind, int blocks, int samples, bool by_grid) {
    if (blocks == 0) return;
    const std::optional<Plan> plan = try_plan(device, shape, kind, blocks, samples, by_grid);
    if (!plan) return;
    const double time = plan->layout.rounds * step_microseconds(shape, plan->layout, false) +
                        (shape.continual ? step_microseconds(shape, plan->moving, true) / 4 : 0);
    if (best && time >= least) return;
    best = plan;
    least = time;
  };
  for (const int samples : samples_of_groups(shape.number_bytes))
    for (const bool by_grid : {true, false}) {
      consider(TeamKind::block, 1, samples, by_grid);
      consider(TeamKind::cluster, device.cluster_blocks, samples, by_grid);
    }
  consider(TeamKind::grid, device.multiprocessors, most_samples(static_cast<int>(shape.number_bytes)), true);
  if (best) return *best;
  return "the weights between layers, and all that goes with them, do not fit into the shared memory of the blocks";
}

template <class Call>
Shape shape_of(const Call& call) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  const Stages stages = stages_of(call);
  return {call.network.shape,
          call.batch.size,
          sizeof(T),
          stages.steps_learn,
          stages.steps_learn && stages.op == Op::ep_step,
          call.stop.tolerance.has_value()};
}

}  // namespace ceprop::cuda::teams
