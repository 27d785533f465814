// This decides how many blocks of a cluster take a chain with maps through its phases, and how it lies in them. No
// torch, no CUDA.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <variant>

#include "../../model/chain.h"
#include "../block/pace.h"
#include "../block/properties.h"
#include "layout.h"

namespace ceprop::cuda::maps {

struct Plan {
  Layout layout;
  int64_t shared_bytes;      // of a block
  int clusters;              // that run at once, as far as they are counted on
  int rounds;                // of so many samples
  double step_microseconds;  // of those; see planning::step_clocks()
};

// This is a plan, or says why there is none.
using Planned = std::variant<Plan, std::string>;

// Returns why clusters take no phase of a chain, or nothing if they may.
inline std::string obstacle_of(const NetworkShape& shape, bool free_feedback) {
  if (!shape.has_convolutions()) return "clusters with maps take convolutions";
  if (shape.has_readout()) return "teams have no readout";
  if (free_feedback) return "where there are convolutions teams take tied weights";
  if (shape.layer_count() < 2 || shape.layer_count() > most_layers)
    return "where there are convolutions teams take 2 to " + std::to_string(most_layers) + " layers, got " +
           std::to_string(shape.layer_count());
  if (shape.is_map(shape.output)) return "where there are convolutions teams take a dense output layer";
  for (int c = 1; c < shape.connection_count(); ++c) {
    if (!shape.is_convolution(c)) continue;
    const Convolution& made = shape.connections[c].convolution;
    const bool is_square = made.kernel[0] == made.kernel[1] && made.padding[0] == made.padding[1];
    if (!is_square || (made.kernel[0] != 3 && made.kernel[0] != 5) || made.stride != std::array<int64_t, 2>{1, 1})
      return "between layers teams take kernels of 3 x 3 or 5 x 5, with a stride of 1";
  }
  return "";
}
template <class T>
std::string obstacle_of(const Network<T>& network, Loss loss) {
  if (!is_of_units(loss) && network.rules[0].dynamics == Dynamics::energy)
    return "where there are convolutions teams take no cross-entropy in energy dynamics";
  return obstacle_of(network.shape, network.free_feedback);
}

namespace planning {

inline constexpr int most_numbered = 1023;           // positions and channels, in ten bits
inline constexpr int64_t most_mail = (1 << 20) - 1;  // bytes that a mailbox can expect

inline constexpr double worth_more_blocks = 0.97;  // of the clocks with fewer

inline int parts(int64_t whole, int64_t part) { return static_cast<int>((whole + part - 1) / part); }
inline int filled(int64_t count, int to) { return parts(count, to) * to; }

// Lays out one part of shared memory after another.
class Places {
 public:
  explicit Places(int number_bytes) : number_bytes_(number_bytes) {}
  int numbers(int64_t count) { return bytes(count * number_bytes_); }
  int bytes(int64_t count) {
    const int64_t place = next_;
    next_ += filled(count, 16);
    return static_cast<int>(place);
  }
  int64_t end() const { return next_; }

 private:
  const int number_bytes_;
  int64_t next_ = 0;
};

// How often to split what is below, or above, so that all warps have work: 1 << shift parts.
inline int shift_of(int items, int depth, int warps) {
  int best = 0;
  double least = 0;
  for (int shift = 0; 1 << shift <= std::min(depth, most_parts); ++shift) {
    const double rounds = double(parts(int64_t(items) << shift, warps)) * parts(depth, 1 << shift);
    if (shift == 0 || rounds < least) {
      best = shift;
      least = rounds;
    }
  }
  return best;
}

inline Layer layer_of(const NetworkShape& shape, int l, int blocks, int pack) {
  Layer layer{};
  const MapShape& map = shape.layers[l];
  layer.is_map = shape.is_map(l);
  layer.channels = static_cast<int>(layer.is_map ? map.channels : map.units());
  layer.height = static_cast<int>(layer.is_map ? map.height : 1);
  layer.width = static_cast<int>(layer.is_map ? map.width : 1);
  layer.row = layer.width;
  layer.channel = layer.height * layer.width;
  const bool is_below_convolution = l + 1 < shape.layer_count() && shape.is_convolution(l + 1);
  if (is_below_convolution) {
    const Convolution& made = shape.connections[l + 1].convolution;
    const int kernel = static_cast<int>(made.kernel[0]);
    layer.margin = static_cast<int>(made.padding[0]);
    const int positions = layer.width + 2 * layer.margin - kernel + 1;
    const int read = filled(positions, tile_positions) - tile_positions + filled(tile_positions + kernel - 1, pack);
    const int packs = parts(std::max(read, layer.margin + filled(layer.width, pack)), pack);
    layer.row = (packs | 1) * pack;  // neighbouring rows lie in different banks
    layer.channel = (layer.height + 2 * layer.margin) * layer.row;
  }
  for (int block = 0; block <= most_blocks; ++block)
    layer.first_own[block] = static_cast<int>(int64_t(layer.channels) * std::min(block, blocks) / blocks);
  for (int block = 0; block < blocks; ++block) layer.most_own = std::max(layer.most_own, layer.own(block));
  const bool aligned = layer.row % pack == 0 && layer.channel % pack == 0;
  layer.in_packs = layer.is_map && aligned && layer.margin % pack == 0 && layer.width % pack == 0;
  layer.cell_row = layer.is_map ? filled(layer.width, pack) : 1;
  layer.cell_channel = layer.height * layer.cell_row;
  // What comes from a convolution above comes to many channels at once: those lie in different banks.
  if (is_below_convolution) layer.cell_channel = (parts(layer.cell_channel, pack) | 1) * pack;
  return layer;
}

// All but the places.
inline Joint joint_of(const NetworkShape& shape, const Layout& layout, int l, int number_bytes) {
  const int pack = 16 / number_bytes, warps = warps_of(number_bytes);
  const Layer &below = layout.layer[l - 1], &above = layout.layer[l];
  Joint joint{};
  joint.is_convolution = shape.is_convolution(l);
  if (!joint.is_convolution) {
    joint.numbers = below.most_own * below.channel;
    joint.inbox_block = above.most_own;
    return joint;
  }
  const Convolution& made = shape.connections[l].convolution;
  joint.kernel = static_cast<int>(made.kernel[0]);
  joint.pool = made.pool;
  joint.window_height = static_cast<int>(made.window[0]);
  joint.window_width = static_cast<int>(made.window[1]);
  const int height = below.height + 2 * below.margin - joint.kernel + 1;
  joint.positions = below.width + 2 * below.margin - joint.kernel + 1;
  joint.own_channels = filled(above.most_own, tile_channels);
  joint.groups = parts(below.channels, lanes);
  const int segments = parts(joint.positions, tile_positions);
  joint.tile_sets = parts(int64_t(joint.own_channels) / tile_channels * height * segments, lanes);
  joint.up_shift = shift_of(joint.tile_sets, below.channels, warps);
  joint.of_up = parts(below.channels, 1 << joint.up_shift);
  joint.segments = segments;
  joint.map_row = (parts(segments * tile_positions, pack) | 1) * pack;
  joint.map = joint.own_channels * height * joint.map_row;
  joint.patch_columns = parts(joint.positions, patch);
  joint.patches = parts(height, patch) * joint.patch_columns;
  // Parts are added up one after another, each by other warps.
  joint.down_shift = 2 * joint.patches > warps ? 0 : shift_of(joint.patches, joint.own_channels, warps);
  while (joint.patches << joint.down_shift > warps && joint.down_shift > 0) --joint.down_shift;
  joint.of_down = parts(joint.own_channels, 1 << joint.down_shift);
  joint.height = height;
  joint.inbox_block = below.most_own * below.cell_channel;
  return joint;
}

// Returns the plan with clusters of so many blocks, if it fits.
inline std::optional<Plan> try_plan(const Device& device, const NetworkShape& shape, int number_bytes, int blocks) {
  const int pack = 16 / number_bytes, layers = shape.layer_count();
  Plan plan{};
  Layout& layout = plan.layout;
  layout.blocks = blocks;
  layout.layers = layers;
  layout.turns = shape.turn_count();
  if (layout.turns > most_layers) return {};
  Places places(number_bytes);
  places.bytes(layout.turns * mailbox_bytes_of_turn);
  int64_t buffer = 0, cells = 0, packs = 0;
  for (int l = 0; l < layers; ++l) {
    Layer& layer = layout.layer[l] = layer_of(shape, l, blocks, pack);
    layer.states = static_cast<int>(buffer);
    buffer += filled(int64_t(layer.channels) * layer.channel * number_bytes, 16);
    layer.first_cell = static_cast<int>(cells);
    cells += filled(int64_t(layer.most_own) * layer.cell_channel, pack);
    packs +=
        layer.is_map ? int64_t(layer.most_own) * layer.height * layer.packs_of_row(pack) : parts(layer.most_own, pack);
    if (layer.channels > 1 << 15) return {};
    layer.owners = places.bytes(4 * int64_t(layer.channels));
    if (l + 1 < layers && !shape.is_convolution(l + 1))
      layer.downs = places.numbers(filled(int64_t(layer.most_own) * layer.channel, pack) + pack);
  }
  for (int turn = 0; turn < layout.turns; ++turn) {
    for (const int l : shape.turns[turn]) layout.layers_of_turn[turn] |= 1u << l;
    // Every block hands on something in every turn: so none is two turns ahead of another.
    for (int block = 0; block < blocks; ++block) {
      int own = 0;
      for (const int l : shape.turns[turn]) own += layout.layer[l].own(block);
      if (own == 0 || bytes_of_parts(layout, turn, block, number_bytes) > most_mail) return {};
    }
    if (bytes_of_states(layout, turn, number_bytes) > most_mail) return {};
  }
  layout.buffer = static_cast<int>(buffer);
  layout.states = places.bytes(2 * buffer);
  layout.packs = places.bytes(16 * packs);
  layout.constants = places.numbers(cells);
  layout.own_states = places.numbers(cells);
  layout.pulls = places.numbers(filled(layout.layer[layers - 1].most_own, pack));
  // Of layers above others only.
  const int first = layout.layer[1].first_cell;
  layout.ups = places.numbers(cells - first) - first * number_bytes;
  layout.picks = places.bytes(4 * (cells - first)) - first * 4;
  int64_t scratch = 0;
  for (int l = 1; l < layers; ++l) {
    const Layer& above = layout.layer[l];
    Joint& joint = layout.joint[l] = joint_of(shape, layout, l, number_bytes);
    joint.inbox = places.numbers(filled(int64_t(blocks) * joint.inbox_block, pack));
    if (!joint.is_convolution) {
      joint.weights = places.numbers(int64_t(above.channels) * joint.numbers);
      continue;
    }
    if (std::max({joint.height, joint.positions, joint.own_channels}) > most_numbered) return {};
    const int taps = joint.kernel * joint.kernel, region = patch + joint.kernel - 1;
    joint.weights = places.numbers(int64_t(joint.groups) * joint.own_channels * taps * of_lanes);
    joint.tiles = places.bytes(16 * int64_t(joint.tile_sets) * lanes);
    joint.spots = places.bytes(16 * int64_t(above.most_own) * above.height * above.width);
    joint.spread = places.numbers(int64_t(joint.patches) * joint.own_channels * patch * patch);
    scratch =
        std::max({scratch, int64_t(joint.map) << joint.up_shift, int64_t(joint.patches) * region * region * lanes});
  }
  layout.scratch = places.numbers(scratch);
  layout.end = static_cast<int>(places.end());
  plan.shared_bytes = places.end();
  if (places.end() > device.shared_bytes) return {};
  return plan;
}

// Returns about how many clocks a step takes a cluster.
inline double step_clocks(const Layout& layout, int number_bytes) {
  using namespace pace::maps;
  const double of_number = number_bytes == 4 ? 1 : pace::of_float64;
  const int warps = warps_of(number_bytes), pack = 16 / number_bytes;
  double clocks = 2 * pace::exchange * layout.turns;
  for (int l = 0; l < layout.layers; ++l) {
    const Layer& layer = layout.layer[l];
    const int own = layer.most_own * layer.height * layer.width;
    clocks += moving * parts(parts(own, pack), lanes * warps);
    const Joint& joint = layout.joint[l];
    if (l == 0) continue;
    const Layer& below = layout.layer[l - 1];
    if (!joint.is_convolution) {
      const double of_row = 3.0 * parts(joint.numbers, lanes) + 60, of_unit = 4.0 * layer.channels;
      clocks += of_number * (parts(layer.channels, warps) * of_row + parts(joint.numbers, lanes * warps) * of_unit);
      continue;
    }
    const int taps = joint.kernel * joint.kernel, side = patch + joint.kernel - 1;
    const int up_items = joint.tile_sets << joint.up_shift, down_items = joint.patches << joint.down_shift;
    const double of_up = parts(up_items, pace::schedulers) * double(joint.of_up) *
                         (taps * (tile_channels * tile_positions + tile_channels) + 9 * joint.kernel);
    const int windows = joint.window_height * joint.window_width;
    const double values = patch * patch / (joint.pool == Pool::max ? double(windows) : 1);
    const double of_down = parts(down_items, pace::schedulers) * double(joint.of_down) * (taps * (1 + values) + 60);
    clocks += of_number * (up * of_up + joint.groups * down * of_down);
    clocks += parts(own, lanes * warps) * pooling * windows;
    clocks += joint.groups * (stored * side * side * (1 << joint.down_shift) * parts(joint.patches, warps) +
                              summing * parts(below.height * below.packs_of_row(pack), warps));
  }
  return clocks;
}

}  // namespace planning

// Returns the fastest plan, or why there is none.
inline Planned plan_maps(const Device& device, const NetworkShape& shape, int64_t samples, int number_bytes) {
  if (device.cluster_blocks == 0) return "the device has no clusters";
  std::optional<Plan> best;
  double least = 0;
  for (int blocks = 1; blocks <= std::min(device.cluster_blocks, most_blocks); ++blocks) {
    std::optional<Plan> plan = planning::try_plan(device, shape, number_bytes, blocks);
    if (!plan) continue;
    // Smaller clusters fit where those of the most blocks do; more of them than that are not counted on.
    plan->clusters = std::max(1, device.clusters * (device.cluster_blocks / blocks));
    plan->rounds = planning::parts(samples, plan->clusters);
    const double clocks = planning::step_clocks(plan->layout, number_bytes);
    plan->step_microseconds = clocks / pace::clocks_of_a_microsecond;
    if (!best || clocks * plan->rounds < least * planning::worth_more_blocks) {
      best = plan;
      least = clocks * plan->rounds;
    }
  }
  if (!best) return "the maps and weights do not fit the shared memory of a cluster";
  return *best;
}

}  // namespace ceprop::cuda::maps
