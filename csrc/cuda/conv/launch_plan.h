// How a device runs a chain with convolutions: in one launch, or by calls of a library. Decided from the device's
// properties, on any machine. No torch, no CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "../launch_plan.h"
#include "problem.h"

namespace ceprop::cuda::conv {

// What a plan depends on of a call.
struct Shape {
  const NetworkShape& network;
  bool free_feedback, energy;
  int64_t batch;
  int64_t number_bytes;  // 4 or 8
};

struct Plan {
  Layout layout;
  std::vector<Link> links;
  int64_t shared_bytes;     // of a block
  int64_t workspace_bytes;  // of global memory
  double step_us;           // by arithmetic
};

// The plan to run by a library's convolutions with small kernels around them; see ../aten.
struct LibraryCalls {
  bool tf32;
  double step_us;  // by arithmetic
};

// Which of them, or why neither.
using Planned = std::variant<Plan, LibraryCalls, std::string>;

namespace planning {

using cuda::planning::rounded_up;

inline int64_t divided(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Returns the largest number that the kernel would count in 32 bits.
inline int64_t largest_count(const Shape& shape) {
  int64_t most = 0;
  for (int c = 0; c < shape.network.connection_count(); ++c) {
    const NetworkShape& network = shape.network;
    most =
        std::max({most, shape.batch * network.units_below(c),
                  shape.batch * network.units_above(c) * network.as_convolution(c).places(), network.weight_count(c)});
  }
  return most;
}

inline Link link_of(const Shape& shape, int c) {
  const MapShape below = shape.network.below(c), above = shape.network.above(c);
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  Link link{};
  link.channels_below = number(below.channels);
  link.height_below = number(below.height);
  link.width_below = number(below.width);
  link.channels = number(above.channels);
  link.height = number(above.height);
  link.width = number(above.width);
  link.dense = !shape.network.is_convolution(c);
  const Convolution of = shape.network.as_convolution(c);
  link.kernel_height = number(of.kernel[0]);
  link.kernel_width = number(of.kernel[1]);
  link.stride_y = number(of.stride[0]);
  link.stride_x = number(of.stride[1]);
  link.padding_y = number(of.padding[0]);
  link.padding_x = number(of.padding[1]);
  link.window_y = number(of.window[0]);
  link.window_x = number(of.window[1]);
  link.pool = of.pool;
  link.taps = link.kernel_height * link.kernel_width;
  link.depth = link.channels_below * link.taps;
  link.pixels_below = link.height_below * link.width_below;
  link.pixels = link.height * link.width;
  link.window = link.window_y * link.window_x;
  link.positions = link.pixels * link.window;
  return link;
}

// Tiles of one job, and what each multiplies: `pass` columns, no more than there are.
struct Tiles {
  int64_t count, depth, pass;
};
inline int64_t pass_of(int64_t columns, int pass) { return std::min<int64_t>(pass, rounded_up(columns, 8)); }
inline Tiles tiles_of(int64_t units, int64_t columns, int64_t window, int64_t depth, int pass) {
  const int64_t at_once = pass_of(columns, pass) / window * window;
  return {divided(units, tile_units) * divided(columns, at_once), depth, pass_of(columns, pass)};
}

inline Tiles tiles_up(const Link& link, int64_t batch, int pass) {
  return tiles_of(link.channels, batch * link.positions, link.window, link.depth, pass);
}
inline Tiles tiles_down(const Link& link, int64_t batch, int pass) {
  if (link.dense) return tiles_of(int64_t(link.channels_below) * link.pixels_below, batch, 1, link.channels, pass);
  return tiles_of(link.channels_below, batch * link.pixels_below, 1, int64_t(link.channels) * link.taps, pass);
}

// What the parts of a step consist of: lifts and moves, of both turns where there are two.
inline std::vector<std::vector<Tiles>> parts_of_step(const Shape& shape, const std::vector<Link>& links, int pass) {
  std::vector<std::vector<Tiles>> parts;
  const int turns = shape.network.turn_count();
  for (int turn = 0; turn < turns; ++turn) {
    const auto moves = [&](int layer) { return layer % turns == turn; };
    std::vector<Tiles> lifts, moved;
    for (int c = 1; c < shape.network.layer_count(); ++c) {
      const bool picks = links[c].pool == Pool::max && moves(c - 1), apart = picks && shape.free_feedback;
      if (moves(c) || (picks && !apart)) lifts.push_back(tiles_up(links[c], shape.batch, pass));
      if (apart) lifts.push_back(tiles_up(links[c], shape.batch, pass));
    }
    for (const int l : shape.network.turns[turn]) {
      if (l + 1 < shape.network.connection_count())
        moved.push_back(tiles_down(links[l + 1], shape.batch, pass));
      else
        moved.push_back(tiles_of(links[l].channels, shape.batch * links[l].pixels, 1, 0, pass));
    }
    parts.push_back(lifts);
    parts.push_back(moved);
  }
  return parts;
}

inline int64_t count_of(const std::vector<Tiles>& part) {
  int64_t count = 0;
  for (const Tiles& tiles : part) count += tiles.count;
  return count;
}

// What a step takes: of every part the tiles of the busiest block, and a barrier, by rates that are assumptions:
// multiplications a clock of a multiprocessor, of which gathering takes about as much time as multiplying, and the time
// until the first numbers of a tile arrive and its last are stored. The whole is times what an H100 took over that for
// the ConvNet of MNIST (benchmarks/README.md, "On a GPU"). For the choice between plans only.
inline double step_microseconds(const Shape& shape, const std::vector<Link>& links, const Layout& layout) {
  const double a_clock = shape.number_bytes == 4 ? 32 : 16, gigahertz = 1.5, barrier = 1.5, arrival = 1.5;
  constexpr double measured_over_counted = 5.6;
  double all = 0;
  for (const std::vector<Tiles>& part : parts_of_step(shape, links, layout.pass)) {
    std::vector<double> load(layout.blocks, 0);
    int64_t next = 0;
    for (const Tiles& tiles : part) {
      const double one =
          arrival + static_cast<double>(tiles.depth * tile_units * tiles.pass) / a_clock / gigahertz / 1000;
      for (double& block : load) block += one * static_cast<double>(tiles.count / layout.blocks);
      for (int64_t i = 0; i < tiles.count % layout.blocks; ++i) load[(next + i) % layout.blocks] += one;
      next = (next + tiles.count) % layout.blocks;
    }
    all += barrier + *std::max_element(load.begin(), load.end());
  }
  return measured_over_counted * all;
}

// The same for a library's kernels in a CUDA graph, one after the other, with four fifths of the device's FP32 rate, or
// four times that in tensor cores: assumptions, too. Up, up again where V picks its own maxima or those below have
// moved within the step, and down.
inline double library_microseconds(const Device& device, const Shape& shape, const std::vector<Link>& links,
                                   bool tf32) {
  constexpr double kernels_of_connection = 6, kernel = 3, gigahertz = 1.5;
  const double lanes = device.compute_capability == 75 || device.compute_capability == 80 ? 64 : 128;
  double multiplications = 0;
  for (int c = 1; c < shape.network.layer_count(); ++c)
    multiplications +=
        (links[c].pool == Pool::max && (shape.free_feedback || shape.network.turn_count() > 1) ? 3.0 : 2.0) *
        static_cast<double>(shape.batch * links[c].positions) * links[c].channels * links[c].depth;
  const double rate = 0.8 * device.multiprocessors * lanes * gigahertz * 1000 *
                      (shape.number_bytes == 8 ? 0.5
                       : tf32                  ? 4
                                               : 1);
  return kernels_of_connection * kernel * shape.network.layer_count() + multiplications / rate;
}

// Contrasts are cut so that there are about two tiles for every block, of at least 64 positions.
inline void slice(const Shape& shape, std::vector<Link>& links, const Layout& layout) {
  const auto tiles = [&](const Link& link) {
    return static_cast<double>(tiles_of(link.channels, link.depth, 1, 0, layout.pass).count);
  };
  double all = 0;
  for (const Link& link : links) all += tiles(link) * static_cast<double>(shape.batch * link.positions);
  const double at_once = std::max(64.0, all / (2 * layout.blocks));
  for (Link& link : links)
    link.slices = static_cast<int>(
        std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(shape.batch * link.positions) / at_once), 1, 64));
}

inline int64_t shared_bytes(const Shape& shape, const Layout& layout) {
  const int64_t operands = 2 * layout.depth * (tile_units + layout.pass), pack = 16 / shape.number_bytes;
  const int64_t slices = block_threads / (tile_units / 4 * (layout.pass / pack));
  return std::max(operands, slices * tile_units * layout.pass) * shape.number_bytes;
}

// Lays a workspace out from `memory` on; returns its bytes.
template <class T>
int64_t lay_out(const Shape& shape, const std::vector<Link>& links, const Layout& layout, Workspace<T>& w,
                void* memory) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  int64_t used = 0;
  const auto take = [&]<class Number>(Number*& to, int64_t count) {
    to = reinterpret_cast<Number*>(begin + used);
    used += rounded_up(count * static_cast<int64_t>(sizeof(Number)), 256);
  };
  const int layers = shape.network.layer_count();
  take(w.x, shape.batch * shape.network.input.units());
  for (T** of_classes : {&w.target, &w.error, &w.end_error[0], &w.end_error[1]})
    take(*of_classes, shape.batch * shape.network.classes);
  for (int l = 0; l < layers; ++l) {
    const int64_t units = shape.batch * shape.network.layers[l].units();
    take(w.drive[l], units);
    for (int buffer = 0; buffer < state_buffers; ++buffer) {
      take(w.state[buffer][l], units);
      if (shape.energy)
        take(w.seen[buffer][l], units);
      else
        w.seen[buffer][l] = w.state[buffer][l];
    }
  }
  for (int c = 0; c < shape.network.connection_count(); ++c) {
    const Link& link = links[c];
    const int copies = shape.free_feedback && c > 0 && c < layers ? 2 : 1;
    for (int copy = 0; copy < copies && link.pool != Pool::none; ++copy)
      for (T** unpooled : {&w.unpooled[copy][0][c], &w.unpooled[copy][1][c]})
        take(*unpooled, shape.batch * link.channels * link.positions);
    take(w.partial[c], int64_t(copies) * link.slices * link.channels * link.depth);
    take(w.taps[c], link.depth);
    take(w.positions[c], shape.batch * link.positions);
    if (c == 0) continue;
    take(w.taps_down[c], int64_t(link.channels) * (link.dense ? 1 : link.taps));
    take(w.cells[c], shape.batch * (link.dense ? 1 : link.pixels_below));
  }
  int64_t parameters = 0;
  for (int c = 0; c < layers; ++c)
    parameters += links[c].channels + (shape.free_feedback ? 2 : 1) * int64_t(links[c].channels) * links[c].depth;
  take(w.before, parameters);
  take(w.settled, 2 * layout.blocks);
  take(w.broken, 1);
  return used;
}

// The plan by which a step takes least by arithmetic; null if no block has room for a tile.
inline std::optional<Plan> fastest(const Device& device, const Shape& shape, const std::vector<Link>& links) {
  const int longest_pass = shape.number_bytes == 4 ? 64 : 32;
  std::optional<Plan> best;
  int widest = 1;
  for (const Link& link : links) widest = std::max(widest, link.window);
  for (int pass = static_cast<int>(rounded_up(widest, 8)); pass <= longest_pass; pass += 8) {
    Plan plan{{0, pass, 0}, links, 0, 0, 0};
    int64_t most = 1;
    for (const std::vector<Tiles>& part : parts_of_step(shape, links, pass)) most = std::max(most, count_of(part));
    plan.layout.blocks = static_cast<int>(std::min({most, int64_t(device.multiprocessors), int64_t(most_blocks)}));
    // What a thread has on its way at once: see Products.
    plan.layout.depth = std::min(8 * (block_threads / pass), 4 * block_threads / tile_units);
    while (plan.layout.depth > 8 && shared_bytes(shape, plan.layout) > device.shared_bytes) plan.layout.depth -= 8;
    plan.shared_bytes = shared_bytes(shape, plan.layout);
    if (plan.shared_bytes > device.shared_bytes) continue;
    plan.step_us = step_microseconds(shape, links, plan.layout);
    if (!best || plan.step_us < best->step_us) best = plan;
  }
  if (!best) return best;
  slice(shape, best->links, best->layout);
  Workspace<float> of_float;
  Workspace<double> of_double;
  best->workspace_bytes = shape.number_bytes == 4 ? lay_out(shape, best->links, best->layout, of_float, nullptr)
                                                  : lay_out(shape, best->links, best->layout, of_double, nullptr);
  return best;
}

}  // namespace planning

// One launch, where it takes less time than a library's calls, or what `engine` asks for.
inline Planned plan_launch(const Device& device, const Shape& shape, Precision precision, Engine engine) {
  using namespace planning;
  if (precision == Precision::bf16)
    return "networks with convolutions take precision 'exact' or 'tf32' on CUDA, got 'bf16'";
  const bool tf32 = precision == Precision::tf32;
  if (tf32 && shape.number_bytes != 4) return "precision 'tf32' takes float32 numbers, got float64";
  if (tf32 && device.compute_capability < 80)
    return "precision 'tf32' needs a device of compute capability 8.0, got " +
           std::to_string(device.compute_capability / 10) + "." + std::to_string(device.compute_capability % 10);
  if (engine == Engine::teams) return "teams take dense layers";
  std::vector<Link> links;
  for (int c = 0; c < shape.network.connection_count(); ++c) links.push_back(link_of(shape, c));
  const LibraryCalls calls{tf32, library_microseconds(device, shape, links, tf32)};
  const int64_t longest_pass = shape.number_bytes == 4 ? 64 : 32;
  const bool has_room =
      std::all_of(links.begin(), links.end(), [&](const Link& link) { return link.window <= longest_pass; });
  const bool fits = !tf32 && has_room && shape.network.layer_count() <= most_layers &&
                    largest_count(shape) <= std::numeric_limits<int>::max();
  const std::optional<Plan> plan = fits && engine != Engine::graph ? fastest(device, shape, links) : std::nullopt;
  if (plan && (engine == Engine::launch || plan->step_us <= calls.step_us)) return *plan;
  if (engine == Engine::launch)
    return "one launch has no room for this network or this batch, or no tensor cores for its precision";
  return calls;
}

}  // namespace ceprop::cuda::conv
