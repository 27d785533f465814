// Which kernel runs a call on a device, and how the work lies in it: decided from the device's properties, on any
// machine. No torch, no CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "../model/shares.h"
#include "problem.h"

namespace ceprop::cuda {

// Plans depend on these of a device's properties.
struct Device {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;  // most that one block may have
  int cluster_blocks;    // most of a cluster that has that much shared memory each; 0: no clusters
  int clusters = 0;      // of so many blocks, that run at once
};

// What a plan depends on of a call.
struct Shape {
  const NetworkShape& network;
  bool energy;
  int64_t batch;
  int64_t number_bytes;  // 4 or 8
  int matrices;          // of [batch][batch] in the workspace
  int64_t moving;        // parameters that may move in place, kept in the workspace as they were
};

// States in the shared memory of one cluster, or in global memory.
enum class Exchange { cluster, grid };

struct Plan {
  Precision precision;
  Exchange exchange;
  Layout layout;
  int64_t shared_bytes;     // of a block
  int64_t workspace_bytes;  // of global memory
};

// A plan, or why there is none.
using Planned = std::variant<Plan, std::string>;

namespace planning {

inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline int64_t tiles_of(const Shape& shape, int layer) {
  return (shape.network.layers[layer].units() + tile_units - 1) / tile_units;
}

// Neighbours below and above whose weights a tile of a layer reads at a step.
inline int64_t depth_below(const Shape& shape, int layer) { return layer > 0 ? shape.network.units_below(layer) : 0; }
inline int64_t depth_above(const Shape& shape, int layer) {
  return layer + 1 < shape.network.connection_count() ? shape.network.units_above(layer + 1) : 0;
}

inline int padding_of(Precision precision) { return precision == Precision::exact ? 0 : tensor_padding; }

// Weights that stay in shared memory are padded as tiles read them.
inline int64_t weights_of_tile(const Shape& shape, int layer, Precision precision) {
  return (rounded_up(depth_below(shape, layer), 16) + rounded_up(depth_above(shape, layer), 16)) *
         (tile_units + padding_of(precision));
}

// Gives every block its share of the tiles of each turn, by what they read, or one each if there are blocks enough;
// fills in layout.first.
inline void share_tiles(const Shape& shape, Layout& layout) {
  for (int turn = 0; turn < shape.network.turn_count(); ++turn) {
    std::vector<double> cost{0};
    for (const int l : shape.network.turns[turn])
      for (int64_t tile = 0; tile < tiles_of(shape, l); ++tile)
        cost.push_back(cost.back() + 64 + static_cast<double>(depth_below(shape, l) + depth_above(shape, l)));
    const auto tiles = static_cast<int64_t>(cost.size()) - 1;
    for (int block = 0; block <= layout.blocks; ++block)
      layout.first[turn][block] = static_cast<uint16_t>(
          tiles <= layout.blocks ? std::min<int64_t>(block, tiles) : first_of_share(cost, block, layout.blocks));
  }
}

// body(layer) for every tile of a block.
template <class Body>
void for_each_tile(const Shape& shape, const Layout& layout, int block, const Body& body) {
  for (int turn = 0; turn < shape.network.turn_count(); ++turn) {
    int64_t begin = 0;
    for (const int l : shape.network.turns[turn]) {
      for (int64_t tile = begin; tile < begin + tiles_of(shape, l); ++tile)
        if (tile >= layout.first[turn][block] && tile < layout.first[turn][block + 1]) body(l);
      begin += tiles_of(shape, l);
    }
  }
}

// Room to work in: parts of the operands, or the sums of slices, or both sides of a contrast.
inline int64_t work_numbers(const Shape& shape, const Layout& layout, Precision precision) {
  const int64_t padding = padding_of(precision), pack = 16 / shape.number_bytes;
  const int64_t operands = 2 * layout.depth * (tile_units + layout.pass + 2 * padding);
  // The threads of a slice have 4 units and a pack of samples each, or its warps 16 by 16.
  const int64_t threads_of_slice =
      precision == Precision::exact ? tile_units / 4 * (layout.pass / pack) : 32 * (layout.pass / 16);
  const int64_t sums = block_threads / threads_of_slice * tile_units * (layout.pass + padding);
  const int64_t contrast = 2 * (tile_units + tile_others) * (layout.pass + pack);
  return std::max({operands, sums, contrast});
}

inline int64_t shared_bytes(const Shape& shape, const Layout& layout, Exchange exchange, Precision precision) {
  int64_t most = 0;
  for (int block = 0; block < layout.blocks; ++block) {
    int64_t numbers = 0;
    for_each_tile(shape, layout, block, [&](int l) {
      if (exchange == Exchange::cluster) numbers += int64_t(tile_units) * layout.unit_states;
      if (layout.resident) numbers += weights_of_tile(shape, l, precision);
    });
    most = std::max(most, numbers);
  }
  return (most + work_numbers(shape, layout, precision)) * shape.number_bytes;
}

// Numbers of the workspace, a row of `columns` each; problem_of() lays them out.
inline int64_t workspace_rows(const Shape& shape) {
  int64_t units = 0;
  for (const MapShape& layer : shape.network.layers) units += layer.units();
  const int64_t copies = shape.energy ? 2 : 1;
  return shape.network.input.units() + 4 * shape.network.classes + state_buffers * copies * units +
         2 * shape.network.layers[0].units() + shape.matrices * shape.batch;
}

// Where the states of a tile lie in a cluster.
inline void place_tiles(const Shape& shape, Layout& layout) {
  int before = 0;  // tiles of earlier turns
  std::vector<int> slots(layout.blocks);
  int64_t tiles = 0;
  for (int turn = 0; turn < shape.network.turn_count(); ++turn) {
    for (const int l : shape.network.turns[turn]) {
      layout.first_tile[l] = static_cast<uint16_t>(tiles);
      tiles += tiles_of(shape, l);
    }
    for (int block = 0; block < layout.blocks; ++block)
      for (int tile = layout.first[turn][block]; tile < layout.first[turn][block + 1]; ++tile) {
        layout.owner[before + tile] = static_cast<uint8_t>(block);
        layout.slot[before + tile] = static_cast<uint8_t>(slots[block]++);
      }
    before += layout.first[turn][layout.blocks];
  }
}

// What a step takes, in microseconds: multiplications of the busiest block at half of the rate of its multiprocessor,
// what every pass of a tile takes beside them, and the barrier. The last two are an H100's, by what steps took there
// (benchmarks/README.md, "On a GPU"); a cluster's barrier is an assumption. For the choice between plans only.
inline double step_microseconds(const Shape& shape, const Plan& plan) {
  const double a_clock = plan.precision == Precision::exact ? (shape.number_bytes == 4 ? 64 : 32) : 256,
               gigahertz = 1.5;
  const double barrier = plan.exchange == Exchange::cluster ? 1.5 : 2.6, pass = 4.7;
  const int64_t passes = (plan.layout.columns + plan.layout.pass - 1) / plan.layout.pass;
  double most = 0;
  for (int block = 0; block < plan.layout.blocks; ++block) {
    double all = 0;
    for_each_tile(shape, plan.layout, block, [&](int l) {
      const double depth = static_cast<double>(depth_below(shape, l) + depth_above(shape, l));
      all += pass * static_cast<double>(passes) + depth * tile_units * plan.layout.columns / a_clock / gigahertz / 1000;
    });
    most = std::max(most, all);
  }
  return most + barrier;
}

// Returns how many tiles move at once in the turn that has most.
inline int64_t most_tiles(const Shape& shape) {
  int64_t most = 0;
  for (const std::vector<int>& turn : shape.network.turns) {
    int64_t tiles = 0;
    for (const int l : turn) tiles += tiles_of(shape, l);
    most = std::max(most, tiles);
  }
  return most;
}

// The plan with this exchange that has most of its operands in shared memory.
inline std::optional<Plan> try_plan(const Device& device, const Shape& shape, Precision precision, Exchange exchange,
                                    bool resident) {
  const int64_t column_step = precision == Precision::exact ? 8 : 16, longest_pass = shape.number_bytes == 4 ? 64 : 32;
  const int64_t blocks = exchange == Exchange::cluster ? device.cluster_blocks : device.multiprocessors;
  Plan plan{precision, exchange, {}, 0, 0};
  plan.layout.blocks = static_cast<int>(std::min({most_tiles(shape), blocks, int64_t(most_blocks)}));
  plan.layout.resident = resident;
  plan.layout.columns = static_cast<int>(rounded_up(shape.batch, column_step));
  const int64_t pack = 16 / shape.number_bytes;
  plan.layout.unit_states =
      static_cast<int>(rounded_up(state_buffers * (shape.energy ? 2 : 1) * plan.layout.columns + 7 * pack, 8 * pack));
  plan.layout.pass = static_cast<int>(std::min<int64_t>(plan.layout.columns, longest_pass));
  if (plan.layout.blocks == 0) return {};
  if (exchange == Exchange::cluster && 2 * most_tiles(shape) > most_cluster_tiles) return {};
  share_tiles(shape, plan.layout);
  if (exchange == Exchange::cluster) place_tiles(shape, plan.layout);
  plan.workspace_bytes =
      (workspace_rows(shape) * plan.layout.columns + shape.moving) * shape.number_bytes + (2 * most_blocks + 1) * 4;
  for (int depth : {128, 64, 32, 16}) {
    plan.layout.depth = depth;
    plan.shared_bytes = shared_bytes(shape, plan.layout, exchange, precision);
    if (plan.shared_bytes <= device.shared_bytes) return plan;
  }
  return {};
}

}  // namespace planning

// The fastest plan by arithmetic, with the weights in shared memory wherever they fit.
inline Planned plan_launch(const Device& device, const Shape& shape, Precision precision) {
  using namespace planning;
  const int layers = shape.network.layer_count();
  if (layers > most_layers)
    return "the CUDA kernels take networks of at most " + std::to_string(most_layers) + " layers, got " +
           std::to_string(layers);
  // Tiles are numbered in 16 bits, units and samples in 32.
  constexpr int64_t most_tiles_at_once = 65535, most = int64_t(1) << 24;
  const auto is_too_wide = [](const MapShape& layer) { return layer.units() > most; };
  if (shape.batch > most || is_too_wide(shape.network.input) || shape.network.classes > most ||
      std::any_of(shape.network.layers.begin(), shape.network.layers.end(), is_too_wide) ||
      most_tiles(shape) > most_tiles_at_once)
    return "the CUDA kernels take at most 2^24 samples, inputs and classes, and 2^20 - 16 units in all layers together";
  if (precision != Precision::exact && shape.number_bytes != 4)
    return "precision 'tf32' and 'bf16' take float32 numbers, got float64";
  if (precision != Precision::exact && device.compute_capability < 80)
    return "precision 'tf32' and 'bf16' need a device of compute capability 8.0, got " +
           std::to_string(device.compute_capability / 10) + "." + std::to_string(device.compute_capability % 10);
  std::optional<Plan> best;
  const auto consider = [&](Exchange exchange, bool resident) {
    const std::optional<Plan> plan = try_plan(device, shape, precision, exchange, resident);
    if (plan && (!best || step_microseconds(shape, *plan) < step_microseconds(shape, *best))) best = plan;
    return plan.has_value();
  };
  if (!consider(Exchange::grid, true)) consider(Exchange::grid, false);
  // With more tiles than blocks, a cluster does one after the other what a grid does side by side: that counts too.
  if (device.cluster_blocks > 0) consider(Exchange::cluster, true);
  if (best) return *best;
  return "the CUDA kernels need more shared memory for a tile than the " + std::to_string(device.shared_bytes) +
         " bytes that a block of this device may have";
}

}  // namespace ceprop::cuda
