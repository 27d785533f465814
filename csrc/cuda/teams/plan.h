// This decides which team runs a call on a device, and how the network lies in it. No torch, no CUDA.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "../../model/shares.h"
#include "../problem_of.h"
#include "layout.h"

namespace ceprop::cuda::teams {

struct Plan {
  Layout layout;
  int64_t shared_bytes;  // of a block
};

// This is a plan, or says why there is none.
using Planned = std::variant<Plan, std::string>;

// Returns why no team runs a call like this on a chain of layers, or nothing if one may.
inline std::string obstacle_of(const NetworkShape& shape, const Stop& stop) {
  if (shape.has_convolutions()) return "teams take dense layers";
  if (shape.has_readout()) return "teams have no readout";
  if (shape.layer_count() > most_layers)
    return "the CUDA kernels take networks of at most " + std::to_string(most_layers) + " layers, got " +
           std::to_string(shape.layer_count());
  return stop.tolerance ? "teams have no tolerance" : "";
}
template <class T>
std::string obstacle_of(const RelaxCall<T>& call) {
  return obstacle_of(call.network.shape, call.stop);
}
template <class T>
std::string obstacle_of(const EpCall<T>& call) {
  if (call.gate != Gate::none) return "teams have no gate";
  if (stages_of(call).steps_learn) return "teams learn from the ends of phases alone";
  return obstacle_of(call.network.shape, call.stop);
}
template <class T>
std::string obstacle_of(const CepCall<T>&) {
  return "teams have no continual EP";
}

// Returns for which numbers of samples there are kernels.
inline std::vector<int> samples_of_groups(int64_t number_bytes) {
  return number_bytes == 4 ? std::vector{1, 3, 4} : std::vector{2};
}

namespace planning {

inline int octets_of(const cuda::Shape& shape, int layer) {
  return static_cast<int>((shape.network.layers[layer].units() + octet - 1) / octet);
}
// Returns what an octet of a layer reads in a step: the layer below, if that is not the input, and the layer above.
inline Sources sources_of(const cuda::Shape& shape, int layer) {
  Sources all{};
  for (const int neighbour : {layer - 1, layer + 1}) {
    if (neighbour < 0 || neighbour > shape.network.output) continue;
    const Sources of = teams::sources_of(static_cast<int>(shape.network.layers[neighbour].units()));
    all = {all.chunks + of.chunks, all.tails + of.tails};
  }
  return all;
}
inline int64_t depth_of(const cuda::Shape& shape, int layer) { return padded(sources_of(shape, layer)); }

// Gives every block of the team a share of the octets by what they read, and notes who reads whom.
inline void share_octets(const cuda::Shape& shape, Layout& layout) {
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
  int most = 0;
  for (int block = 0; block <= layout.blocks; ++block) {
    layout.first_of_block[block] = static_cast<int>(
        octets <= layout.blocks ? std::min(block, octets) : first_of_share(cost, block, layout.blocks));
    if (block > 0) most = std::max(most, layout.first_of_block[block] - layout.first_of_block[block - 1]);
  }
  layout.warps = std::min(most, most_warps(static_cast<int>(shape.number_bytes)));
  layout.output_readers = 0;
  std::fill(layout.readers, layout.readers + most_layers, 0u);
  for (int block = 0; block < layout.blocks; ++block)
    for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i) {
      const int l = layer_of[i];
      if (l > 0) layout.readers[l - 1] |= 1u << block;
      if (l + 1 < layers) layout.readers[l + 1] |= 1u << block;
      if (l + 1 == layers) layout.output_readers |= 1u << block;
    }
}

inline int64_t weight_bytes(const cuda::Shape& shape, const Layout& layout) {
  int64_t most = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    int64_t numbers = 0;
    for (int l = 0; l < shape.network.layer_count(); ++l) {
      const int begin = std::max(layout.first_octet[l], layout.first_of_block[block]);
      const int end = std::min(layout.first_octet[l] + octets_of(shape, l), layout.first_of_block[block + 1]);
      numbers += std::max(end - begin, 0) * octet * depth_of(shape, l);
    }
    most = std::max(most, numbers);
  }
  return most * shape.number_bytes;
}

// Lays out shared memory for `layout.groups` groups, and returns its bytes.
inline int64_t lay_out(const cuda::Shape& shape, Layout& layout) {
  const int bytes = static_cast<int>(shape.number_bytes), of_octet = octet_bytes(layout.samples, bytes);
  const int layers = shape.network.layer_count();
  int64_t buffer = 0;
  for (int l = 0; l < layers; ++l) {
    layout.states[l] = static_cast<int>(buffer);
    buffer += padded(teams::sources_of(static_cast<int>(shape.network.layers[l].units()))) / octet * int64_t(of_octet);
  }
  layout.states[layers] = static_cast<int>(buffer);
  buffer += int64_t(octets_of(shape, shape.network.output)) * of_octet;
  int most = 0;
  for (int block = 0; block < layout.blocks; ++block)
    most = std::max(most, layout.first_of_block[block + 1] - layout.first_of_block[block]);
  layout.buffer = static_cast<int>(buffer);
  layout.buffers = 4 * layout.groups * 16;  // behind two mailboxes a group in each of two channels
  int64_t next = layout.buffers + 2 * layout.groups * buffer;
  const auto place = [&](int& at, int64_t size) {
    at = static_cast<int>(next);
    next += size;
  };
  place(layout.jobs, most * int64_t(sizeof(Job)));
  place(layout.own, int64_t(most) * layout.groups * own_numbers * 32 * bytes);
  place(layout.weights, weight_bytes(shape, layout));
  return next;
}

// Returns the microseconds of a step of the samples that a plan has at once. Instructions and latencies are assumed,
// not measured: what an octet takes beside its products, the pace of a warp's instructions, and a push to its arrival.
// It serves the choice between plans only.
inline double step_microseconds(const cuda::Shape& shape, const Plan& plan) {
  constexpr double beside = 250, latency = 3, issue = 4, exchange = 300, barrier = 60, gigahertz = 1.75;
  const Layout& layout = plan.layout;
  double most = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    double all = 0, longest = 0;
    for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i) {
      const double lanes = static_cast<double>(depth_of(shape, layout.layer_of(i))) / 32;  // sources a lane
      const double instructions = beside + lanes * (2 + layout.samples * 8.25) * (shape.number_bytes == 4 ? 1 : 3);
      all += instructions;
      longest = std::max(longest, instructions);
    }
    const int jobs = layout.first_of_block[block + 1] - layout.first_of_block[block];
    const double of_warp = latency * longest * ((jobs + layout.warps - 1) / std::max(layout.warps, 1));
    most = std::max(most, std::max(all / issue * 1.2, of_warp));
  }
  const double between = layout.blocks == 1 ? barrier : exchange;
  return (std::max(most * layout.groups, most + between) + (layout.blocks == 1 ? between : 0)) / gigahertz / 1000 *
         shape.network.turn_count();
}

// Returns the plan with teams of so many blocks and groups of so many samples. It takes as many groups at once as it
// needs or has room for.
inline std::optional<Plan> try_plan(const Device& device, const cuda::Shape& shape, int blocks, int samples) {
  Plan plan{};
  Layout& layout = plan.layout;
  layout.blocks = blocks;
  layout.samples = samples;
  share_octets(shape, layout);
  const int at_once = blocks == 1 ? device.multiprocessors : device.clusters;
  if (at_once == 0) return {};
  const int64_t groups = (shape.batch + samples - 1) / samples;
  layout.teams = static_cast<int>(std::min<int64_t>(at_once, groups));
  const int64_t wanted = std::min<int64_t>((groups + layout.teams - 1) / layout.teams, most_groups);
  for (layout.groups = static_cast<int>(wanted); layout.groups > 0; --layout.groups) {
    plan.shared_bytes = std::max<int64_t>(lay_out(shape, layout), tile_numbers * shape.number_bytes);
    if (plan.shared_bytes <= device.shared_bytes) break;
  }
  if (layout.groups == 0) return {};
  const int64_t at_a_time = int64_t(layout.teams) * layout.samples_at_once();
  layout.rounds = static_cast<int>((shape.batch + at_a_time - 1) / at_a_time);
  return plan;
}

}  // namespace planning

// Returns the fastest plan by arithmetic, for a call that has no obstacle, or why there is none.
inline Planned plan_team(const Device& device, const cuda::Shape& shape) {
  using namespace planning;
  const int64_t inputs = shape.network.input.units(), most = int64_t(1) << 31;
  if (inputs * shape.batch >= most || inputs * shape.network.layers[0].units() >= most)
    return "teams take less than 2^31 numbers of a batch, and weights of a connection";
  std::optional<Plan> best;
  double least = 0;
  for (const int blocks : {1, device.cluster_blocks})
    for (const int samples : samples_of_groups(shape.number_bytes)) {
      if (blocks == 0) continue;
      const std::optional<Plan> plan = try_plan(device, shape, blocks, samples);
      if (!plan) continue;
      const double time = plan->layout.rounds * step_microseconds(shape, *plan);
      if (!best || time < least) {
        best = plan;
        least = time;
      }
    }
  if (best) return *best;
  return "the weights between layers do not fit into the shared memory of a team";
}

// Returns the kernel's argument; `broken` has room for a number in the device's memory.
template <class Call>
auto problem_of(const Call& call, const Plan& plan, int* broken) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  Problem<T> problem{};
  give(problem, call);
  problem.layout = plan.layout;
  problem.broken = broken;
  return problem;
}

}  // namespace ceprop::cuda::teams
