// A network on its way to a fixed point: the part of one block.
//
// A unit belongs to one block, which holds the weights into it from below and from above and is the only one to write
// its states. A step reads the neighbours' states, writes the block's own and ends with a barrier of all blocks.
#pragma once

#include "device.h"
#include "problem.h"
#include "states.cuh"
#include "tiles.cuh"
#include "units.cuh"

namespace ceprop::cuda {

// A tile of a layer, and where the block keeps the weights into it, [below, then above][tile_units], if it does.
template <class T>
struct Item {
  int layer, first;  // unit
  T* weights;
};

// Operands of a tile's product: weight (u, k) at weights[k * next_k + u * next_u], neighbour k's row of states in
// `rows`, or, null, what is seen of layer `layer` in `field`.
template <class T>
struct Operands {
  const T* weights;
  int64_t next_k, next_u;
  bool packed;  // already as a tile reads them, in shared memory
  const T* rows;
  int field, layer, depth;
};

// What is done once for all tiles: the drive by the input is computed; or the states move from field `from` to field
// `to`, nudged by beta if it is not 0, with the drive that C-EP's weights in low rank lack if `corrected`.
template <class T>
struct Step {
  bool loads;
  int from, to;
  T beta;
  bool corrected;
};

__device__ __forceinline__ int padded_depth(int depth) { return (depth + 15) / 16 * 16; }

template <class T, class Tile, class States>
class Relaxation {
 public:
  // Shared memory: the cluster's states if they lie there, the weights if they stay, and room to work in.
  __device__ explicit Relaxation(const Problem<T>& problem)
      : p(problem), states(problem, dynamic_shared_memory<T>()), resident_(dynamic_shared_memory<T>()) {
    if (States::in_shared_memory) resident_ += own_tiles() * tile_units * fields * 2 * p.layout.columns;
    T* end = resident_;
    if (p.layout.resident) for_each_item(-1, [&](const Item<T>& item) { end = item.weights + weights_of(item.layer); });
    work_ = end;
  }

  const Problem<T>& p;
  const States states;

  // body(item) for this block's tiles of one half of the layers; -1: of all.
  template <class Body>
  __device__ void for_each_item(int half, const Body& body) const {
    T* weights = resident_;
    for (int h = 0; h < halves_of(p); ++h) {
      int layer = h, tile = p.layout.first[h][blockIdx.x];
      const int end = p.layout.first[h][blockIdx.x + 1];
      int before = 0;
      for (int index = tile; index < end; ++index) {
        while (index - before >= tiles_of(p, layer)) {
          before += tiles_of(p, layer);
          layer += halves_of(p);
        }
        if (half < 0 || half == h) body(Item<T>{layer, (index - before) * tile_units, weights});
        if (p.layout.resident) weights += weights_of(layer);
      }
    }
  }
  __device__ int depth_below(int layer) const { return layer > 0 ? p.widths[layer] : 0; }
  __device__ int depth_above(int layer) const { return layer + 1 < p.layers || p.readout ? p.widths[layer + 2] : 0; }
  __device__ T* work() const { return work_; }
  // Where the weights of a tile stay, side 0: from below, 1: from above.
  __device__ T* packed(const Item<T>& item, int side) const {
    return item.weights + side * padded_depth(depth_below(item.layer)) * tile_units;
  }

  // Brings x, the target, the starting states and the weights to where the steps read them. Ends with a barrier.
  __device__ void load() {
    transpose(p.x, p.widths[0], p.workspace.x, p.rules[0].dynamics == Dynamics::energy);
    if (p.target) transpose(p.target, classes(), p.workspace.target, false);
    for_each_item(-1, [&](const Item<T>& item) { load_item(item); });
    states.sync();
  }

  // Ends with a barrier if states moved; remembers whether one did by more than the tolerance.
  __device__ void take(const Step<T>& step) {
    stays_ = true;
    for (int half = 0; half < halves_of(p); ++half) {
      for_each_item(half, [&](const Item<T>& item) {
        if (!step.loads || item.layer == 0) multiply(item, step, half == 0 ? step.from : step.to);
      });
      if (!step.loads) states.sync();
    }
  }

  // Whether a phase ends after `count` steps; all blocks agree. Every block has to ask after every step.
  __device__ bool may_stop(int count) {
    if (p.tolerance < 0 || count % steps_per_check != 0) return false;
    const bool all = __syncthreads_and(stays_);
    // Two rows of flags, in turn: a fast block may set the next before a slow one has read this.
    int* flags = p.workspace.settled + count / steps_per_check % 2 * p.layout.blocks;
    if (threadIdx.x == 0) flags[blockIdx.x] = all;
    states.sync();
    bool settled = true;
    for (int block = static_cast<int>(threadIdx.x); block < p.layout.blocks; block += block_threads)
      settled = settled && __ldcg(flags + block);
    return __syncthreads_and(settled);
  }

  __device__ void note_steps(int phase, int count) const {
    if (blockIdx.x == 0 && threadIdx.x == 0) p.steps_used[phase] = count;
  }

  // The block's own states; each thread those that it will read itself in store().
  __device__ void copy_field(int from, int to) const {
    for_each_state([&](int layer, int unit, int sample) {
      states.state(to, layer, unit)[sample] = states.state(from, layer, unit)[sample];
      states.seen(to, layer, unit)[sample] = states.seen(from, layer, unit)[sample];
    });
  }

  // out[l] [B, n_l] <- the block's states.
  __device__ void store(int field, T* const* out) const {
    for_each_state([&](int layer, int unit, int sample) {
      if (sample < p.batch)
        out[layer][static_cast<int64_t>(sample) * p.widths[layer + 1] + unit] =
            states.state(field, layer, unit)[sample];
    });
  }

  // error = scale (y - softmax(logits)) of the states in `field`. Ends with a barrier.
  __device__ void compute_error(int field, T scale, T* error) {
    if (p.readout) {
      for (int c = static_cast<int>(blockIdx.x); c < classes(); c += p.layout.blocks)
        compute_logits(field, c, error + int64_t(c) * p.layout.columns);
      states.sync();
    }
    const int first = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
    for (int sample = first; sample < p.batch; sample += p.layout.blocks * block_threads) {
      const auto at = [&](int c) { return error + int64_t(c) * p.layout.columns + sample; };
      const auto logit = [&](int c) {
        return p.readout ? __ldcg(at(c)) : states.state(field, p.layers - 1, c)[sample];
      };
      T most = logit(0), sum = 0;
      for (int c = 1; c < classes(); ++c) most = logit(c) > most ? logit(c) : most;
      for (int c = 0; c < classes(); ++c) sum += exponential(logit(c) - most);
      for (int c = 0; c < classes(); ++c) {
        const T target = p.workspace.target[static_cast<int64_t>(c) * p.layout.columns + sample];
        *at(c) = scale * (target - exponential(logit(c) - most) / sum);
      }
    }
    states.sync();
  }

  __device__ int classes() const { return p.widths[p.layers + p.readout]; }

 private:
  __device__ int weights_of(int layer) const {
    return (padded_depth(depth_below(layer)) + padded_depth(depth_above(layer))) * tile_units;
  }
  __device__ int own_tiles() const {
    int all = 0;
    for (int half = 0; half < halves_of(p); ++half)
      all += p.layout.first[half][blockIdx.x + 1] - p.layout.first[half][blockIdx.x];
    return all;
  }

  // body(layer, unit, sample) for the block's units and all columns, the padding too.
  template <class Body>
  __device__ void for_each_state(const Body& body) const {
    for_each_item(-1, [&](const Item<T>& item) {
      const int columns = p.layout.columns, units = p.widths[item.layer + 1];
      for (int i = static_cast<int>(threadIdx.x); i < tile_units * columns; i += block_threads)
        if (item.first + i / columns < units) body(item.layer, item.first + i / columns, i % columns);
    });
  }

  // to[k] [columns] <- from [B][width], by all blocks.
  __device__ void transpose(const T* from, int width, T* to, bool emits) const {
    const int columns = p.layout.columns;
    for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < int64_t(width) * columns;
         i += int64_t(p.layout.blocks) * block_threads) {
      const int k = static_cast<int>(i / columns), sample = static_cast<int>(i % columns);
      T value = 0;
      if (sample < p.batch) {
        value = from[int64_t(sample) * width + k];
        if (emits) value = rho_of(p.input_activation, value);
      }
      to[i] = value;
    }
  }

  // What a tile multiplies on one side, 0: from below, 1: from above, with the weights where the network has them.
  // Depth 0: nothing.
  __device__ Operands<T> given(const Item<T>& item, int side, int field) const {
    const int l = item.layer, units = p.widths[l + 1], depth = side ? depth_above(l) : depth_below(l);
    if (depth == 0) return {};
    if (side == 0) return {p.weights[l] + int64_t(item.first) * depth, 1, depth, false, nullptr, field, l - 1, depth};
    const bool is_top = l + 1 == p.layers;
    const T* matrix = p.free_feedback && !is_top ? p.feedback[l] : p.weights[l + 1];
    return {matrix + item.first, units, 1, false, is_top ? p.workspace.error : nullptr, field, l + 1, depth};
  }
  __device__ void load_item(const Item<T>& item) const {
    const int l = item.layer, units = p.widths[l + 1], columns = p.layout.columns;
    const bool has_seen = p.rules[l].dynamics == Dynamics::energy;
    for (int i = static_cast<int>(threadIdx.x); i < tile_units * columns; i += block_threads) {
      const int unit = item.first + i / columns, sample = i % columns;
      if (unit >= units) break;
      const bool given = p.initial[l] && sample < p.batch;
      const T start = given ? p.initial[l][int64_t(sample) * units + unit] : T(0);
      for (int field = 0; field < fields; ++field) {
        states.state(field, l, unit)[sample] = field == 0 ? start : T(0);
        if (has_seen)
          states.seen(field, l, unit)[sample] =
              field == 0 && sample < p.batch ? rho_of(p.rules[l].activation, start) : T(0);
      }
    }
    if (!p.layout.resident) return;
    for (int side = 0; side < 2; ++side) {
      const Operands<T> of = given(item, side, 0);
      stage_weights(of.weights, of.next_k, of.next_u, of.depth, units - item.first, padded_depth(of.depth),
                    packed(item, side));
    }
  }

  // What a tile multiplies on one side in a step.
  __device__ Operands<T> operands(const Item<T>& item, const Step<T>& step, int side, int seen) const {
    const int l = item.layer, n_in = p.widths[0];
    if (step.loads)
      return {p.weights[0] + int64_t(item.first) * n_in, 1, n_in, false, p.workspace.x, 0, 0, side ? 0 : n_in};
    Operands<T> of = given(item, side, seen);
    if (side == 1 && l + 1 == p.layers && step.beta == 0) of.depth = 0;  // a readout pulls only while nudged
    if (p.layout.resident) {
      of.weights = packed(item, side);
      of.next_k = tile_units;
      of.next_u = 1;
      of.packed = true;
    }
    return of;
  }

  // All operands of a tile, added up, then its units' drive or their next states.
  __device__ void multiply(const Item<T>& item, const Step<T>& step, int seen) {
    const int pass = p.layout.pass, stride = pass + partial_padding, units = p.widths[item.layer + 1];
    for (int first = 0; first < p.batch; first += pass) {
      __syncthreads();  // nobody reads what the last product left any more
      Tile tile(pass);
      for (int side = 0; side < 2; ++side)
        add_products(tile, operands(item, step, side, seen), units - item.first, first);
      T* partial = work_;
      tile.spill(partial);
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < tile_units * pass; i += block_threads) {
        const int u = i / pass, column = i % pass;
        if (item.first + u >= units || first + column >= p.batch) continue;
        T sum = 0;
        for (int slice = 0; slice < tile.slices(); ++slice) sum += partial[(slice * tile_units + u) * stride + column];
        if (step.loads)
          p.workspace.drive[int64_t(item.first + u) * p.layout.columns + first + column] =
              sum + (p.biases[0] ? p.biases[0][item.first + u] : T(0));
        else
          move(item.layer, item.first + u, first + column, sum, step);
      }
    }
  }

  // One unit of one sample, to which its neighbours bring `drive`.
  __device__ void move(int l, int unit, int sample, T drive, const Step<T>& step) {
    const int64_t at = int64_t(unit) * p.layout.columns + sample;
    const UnitRule rule = p.rules[l];
    if (step.corrected) drive += low_rank_drive(l, unit, sample, step.from);
    drive += l == 0 ? p.workspace.drive[at] : p.biases[l] ? p.biases[l][unit] : T(0);
    const T state = states.state(step.from, l, unit)[sample];
    T inside = 0, outside = 0;
    if (step.beta != 0 && l + 1 == p.layers && !p.readout) {
      const bool squares = p.nudge.loss == Loss::mse;
      const T pull = squares ? step.beta * (p.workspace.target[at] - state) : __ldcg(p.workspace.error + at);
      (p.nudge.at == NudgeAt::drive ? inside : outside) = pull;
    }
    const T next = next_of(rule, drive, state, inside, outside);
    states.state(step.to, l, unit)[sample] = next;
    if (rule.dynamics == Dynamics::energy) states.seen(step.to, l, unit)[sample] = rho_of(rule.activation, next);
    const double moved = static_cast<double>(next) - static_cast<double>(state);
    stays_ = stays_ && moved <= p.tolerance && -moved <= p.tolerance;
  }

  // What C-EP's weights in low rank lack: products with B x B matrices, see continual_update.cuh.
  __device__ T low_rank_drive(int layer, int unit, int sample, int field) const {
    const T* now = states.seen(field, layer, unit);
    const T* free = states.seen(kept_free, layer, unit);
    const T* of_away = p.workspace.of_away[layer] + sample;
    const T* of_free = p.workspace.of_free[layer] + sample;
    T sum = 0;
    for (int other = 0; other < p.batch; ++other) {
      const int64_t at = int64_t(other) * p.layout.columns;
      sum += of_away[at] * (now[other] - free[other]) + of_free[at] * free[other];
    }
    return sum;
  }

  // While one part of the depth is multiplied, the next comes to shared memory. Ends with a barrier of the block.
  __device__ void add_products(Tile& tile, const Operands<T>& of, int units, int first) {
    using Staged = typename Tile::Staged;
    const int depth = p.layout.depth, pass = p.layout.pass;
    Staged* weights = reinterpret_cast<Staged*>(work_);  // [2][depth][tile_units]
    Staged* rows = weights + 2 * depth * tile_units;     // [2][depth][pass]
    const auto fetch = [&](int k) {
      const int buffer = k / depth % 2;
      if (k < of.depth) {
        if (!of.packed || Tile::converts)
          stage_weights(of.weights + k * of.next_k, of.next_k, of.next_u, of.depth - k, units, depth,
                        weights + buffer * depth * tile_units);
        stage_rows(of, first, k, rows + buffer * depth * pass);
      }
      __pipeline_commit();
    };
    fetch(0);
    for (int k = 0; k < of.depth; k += depth) {
      fetch(k + depth);
      __pipeline_wait_prior(1);
      __syncthreads();
      const int left = of.depth - k < depth ? of.depth - k : depth, buffer = k / depth % 2;
      const int count = (left + Tile::depth_step - 1) / Tile::depth_step * Tile::depth_step;
      const Staged* w = weights + buffer * depth * tile_units;
      if constexpr (!Tile::converts)
        if (of.packed) w = of.weights + int64_t(k) * tile_units;
      tile.add(w, rows + buffer * depth * pass, count);
      __syncthreads();
    }
  }

  // to[row][u] <- from[row * next_k + u * next_u], of which one step is 1; zeros past the depth and the last unit.
  template <class Number>
  __device__ static void stage_weights(const T* from, int64_t next_k, int64_t next_u, int depth, int units, int rows,
                                       Number* to) {
    // Four numbers that lie side by side at a time: whole sectors of memory, and few threads in the same bank.
    const bool along_depth = next_k == 1;
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && (along_depth ? next_u : next_k) % 4 == 0;
    for (int i = static_cast<int>(threadIdx.x); i < rows * tile_units / 4; i += block_threads) {
      const int row = along_depth ? i / tile_units * 4 : i / (tile_units / 4);
      const int u = along_depth ? i % tile_units : i % (tile_units / 4) * 4;
      const int there = along_depth ? (u < units ? depth - row : 0) : row < depth ? units - u : 0;
      const T* at = from + row * next_k + u * next_u;
      Four<T> four{};
      if (aligned && there >= 4)
        four = load_four(at);
      else
        for (int j = 0; j < 4; ++j)
          if (j < there) four.v[j] = at[j];
      for (int j = 0; j < 4; ++j) {
        Number& out = to[along_depth ? (row + j) * tile_units + u : row * tile_units + u + j];
        if constexpr (std::is_same_v<Number, T>)
          out = four.v[j];
        else
          out = Tile::staged(four.v[j]);
      }
    }
  }

  __device__ void stage_rows(const Operands<T>& of, int first, int k, typename Tile::Staged* to) const {
    const int pass = p.layout.pass, fours = pass / 4;
    for (int i = static_cast<int>(threadIdx.x); i < p.layout.depth * fours; i += block_threads) {
      const int row = i / fours, column = 4 * (i % fours);
      typename Tile::Staged* at = to + row * pass + column;
      if (k + row >= of.depth || first + column >= p.layout.columns) {
        for (int j = 0; j < 4; ++j) at[j] = Tile::staged(T(0));
        continue;
      }
      const T* from =
          (of.rows ? of.rows + int64_t(k + row) * p.layout.columns : states.seen(of.field, of.layer, k + row)) + first +
          column;
      if constexpr (Tile::converts || States::in_shared_memory) {
        const Four<T> four = load_four(from);
        for (int j = 0; j < 4; ++j) at[j] = Tile::staged(four.v[j]);
      } else {
        for (int byte = 0; byte < int(4 * sizeof(T)); byte += 16)
          __pipeline_memcpy_async(reinterpret_cast<char*>(at) + byte, reinterpret_cast<const char*>(from) + byte, 16);
      }
    }
  }

  // logits [columns] of one class.
  __device__ void compute_logits(int field, int c, T* logits) const {
    const int top = p.layers - 1, units = p.widths[top + 1], pass = p.layout.pass;
    const int slices = block_threads / pass, slice = static_cast<int>(threadIdx.x) / pass;
    const int column = static_cast<int>(threadIdx.x) % pass;
    const T* weights = p.weights[p.layers] + int64_t(c) * units;
    for (int first = 0; first < p.batch; first += pass) {
      __syncthreads();
      T sum = 0;
      if (slice < slices && first + column < p.batch)
        for (int k = slice; k < units; k += slices) sum += weights[k] * states.state(field, top, k)[first + column];
      work_[threadIdx.x] = sum;
      __syncthreads();
      if (slice > 0 || first + column >= p.batch) continue;
      T logit = p.biases[p.layers] ? p.biases[p.layers][c] : T(0);
      for (int s = 0; s < slices; ++s) logit += work_[s * pass + column];
      logits[first + column] = logit;
    }
  }

  T* resident_;
  T* work_;
  bool stays_ = true;
};

}  // namespace ceprop::cuda
