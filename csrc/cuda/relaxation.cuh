// A network on its way to a fixed point: the part of one block.
//
// A unit belongs to one block, which holds the weights into it from below and from above and is the only one to write
// its states. A step reads the neighbours' states, writes the block's own and ends with a barrier of all blocks.
#pragma once

#include "own_tiles.cuh"
#include "products.cuh"
#include "sanity.cuh"
#include "settling.cuh"
#include "units.cuh"

namespace ceprop::cuda {

// What all blocks multiply before the next barrier.
enum class Kind {
  drive,     // by the input's weights: what reaches layer 0
  gram,      // C-EP: x^T x, and 1 for the bias
  logits,    // of a readout, into `error`
  low_rank,  // C-EP: the B x B matrices by which the weights' move since the free phase acts on the states
  move,      // the states, from buffer `from` to buffer `to`, nudged by beta if it is not 0
};

template <class T>
struct Step {
  Kind kind;
  int from, to;
  T beta;
  T keep;          // of the drive by the input's weights as they were loaded, after C-EP's updates; see learning.cuh
  bool moved;      // C-EP has moved the input's weights
  bool corrected;  // and those between layers, in low rank
  T* error;
};

template <class T, class Tile, class States>
class Relaxation {
 public:
  // Shared memory: the cluster's states if they lie there, the weights if they stay, and room to work in.
  __device__ explicit Relaxation(const Problem<T>& problem)
      : p(problem),
        states(problem, dynamic_shared_memory<T>()),
        sanity(problem, problem.workspace.broken),
        products_(p, states),
        share_(p.layout.pass),
        resident_(dynamic_shared_memory<T>()) {
    if (States::in_shared_memory)
      for (OwnTiles<T> all = tiles(); all.next();) resident_ += tile_units * p.layout.unit_states;
    OwnTiles<T> all = tiles();
    while (all.next()) continue;
    work_ = all.end_of_weights;
  }

  const Problem<T>& p;
  const States states;
  Sanity<T> sanity;
  using Operand = Products<T, Tile, States>;
  static constexpr int packed_stride = Operand::packed_stride;

  __device__ OwnTiles<T> tiles(int half = -1) const { return OwnTiles<T>(p, half, resident_, packed_stride); }
  __device__ T* work() const { return work_; }
  // Where the weights of a tile stay, side 0: from below, 1: from above.
  __device__ T* packed(const Item<T>& item, int side) const {
    return item.weights + side * padded_depth(depth_below(p, item.layer)) * packed_stride;
  }

  // Brings x, the target, the starting states and the weights to where the steps read them. Ends with a barrier.
  __device__ void load() {
    sanity.begin();
    transpose(p.x, p.widths[0], p.workspace.x, p.rules[0].dynamics == Dynamics::energy);
    if (p.target) transpose(p.target, classes(), p.workspace.target, false);
    for (OwnTiles<T> own = tiles(); own.next();) load_item(own.item);
    states.sync();
  }

  // Remembers, if states moved, whether one did by more than the tolerance. Ends with a barrier.
  __device__ void take(const Step<T>& step) {
    if (step.kind == Kind::move) stays_ = true;
    const bool of_tiles = step.kind == Kind::drive || step.kind == Kind::move;
    const int halves = step.kind == Kind::move ? halves_of(p) : 1;
    for (int half = 0; half < halves; ++half) {
      OwnTiles<T> own = tiles(step.kind == Kind::move ? half : -1);
      for (int index = static_cast<int>(blockIdx.x);; index += p.layout.blocks) {
        if (of_tiles ? !own.next() : index >= matrix_tiles(step.kind)) break;
        const Item<T> item = of_tiles ? own.item : matrix_tile(step.kind, index);
        if (step.kind != Kind::drive || item.layer == 0) multiply(item, step, half == 0 ? step.from : step.to);
      }
      states.sync();
    }
  }

  __device__ bool may_stop(int count) const {
    return cuda::may_stop(p, states, stays_, count, p.layout.blocks, p.workspace.settled);
  }

  __device__ void note_steps(int phase, int count) const {
    if (blockIdx.x == 0 && threadIdx.x == 0) p.steps_used[phase] = count;
  }

  // The block's own states; each thread those that it will read itself in store().
  __device__ void copy_states(int from, int to) const {
    for (OwnTiles<T> own = tiles(); own.next();) {
      const int layer = own.item.layer;
      for_each_pack(own.item, [&](int unit, int column) {
        store_pack(states.state(to, layer, unit) + column, load_pack(states.state(from, layer, unit) + column));
        store_pack(states.seen(to, layer, unit) + column, load_pack(states.seen(from, layer, unit) + column));
      });
    }
  }

  // out[l] [B, n_l] <- the block's states.
  __device__ void store(int buffer, T* const* out) const {
    for (OwnTiles<T> own = tiles(); own.next();) {
      const int layer = own.item.layer;
      for_each_pack(own.item, [&](int unit, int column) {
        const Pack<T> state = load_pack(states.state(buffer, layer, unit) + column);
#pragma unroll
        for (int j = 0; j < Pack<T>::size; ++j)
          if (column + j < p.batch) out[layer][int64_t(column + j) * p.widths[layer + 1] + unit] = state.v[j];
      });
    }
  }

  // error = scale times that of the outputs in `buffer`, or of a readout's logits, which are in `error`. Also of the
  // last pack's padding, which move() reads. Ends with a barrier.
  __device__ void take_error(int buffer, T scale, T* error) {
    constexpr int pack = Pack<T>::size;
    const int first = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
    const int end = (p.batch + pack - 1) / pack * pack;
    for (int sample = first; sample < end; sample += p.layout.blocks * block_threads) {
      const auto slot = [&](int64_t c) -> T& { return error[c * p.layout.columns + sample]; };
      const auto logit = [&](int64_t c) {
        return p.readout ? __ldcg(&slot(c)) : states.state(buffer, p.layers - 1, static_cast<int>(c))[sample];
      };
      const auto target = [&](int64_t c) { return p.workspace.target[c * p.layout.columns + sample]; };
      sanity.note(sample_error(classes(), scale, logit, target, slot));
    }
    states.sync();
  }

  // body(unit, column) for a tile's units and all packs of samples, the padding too.
  template <class Body>
  __device__ void for_each_pack(const Item<T>& item, const Body& body) const {
    const int packs = p.layout.columns / Pack<T>::size;
    for (int i = static_cast<int>(threadIdx.x); i < tile_units * packs; i += block_threads) {
      const int unit = item.first + States::unit_of(i, packs);
      if (unit < p.widths[item.layer + 1]) body(unit, States::pack_of(i, packs) * Pack<T>::size);
    }
  }

  __device__ int classes() const { return p.widths[p.layers + p.readout]; }

 private:
  // to[k] [columns] <- from [B][width], by all blocks.
  __device__ void transpose(const T* from, int width, T* to, bool emits) {
    constexpr int pack = Pack<T>::size;
    const int columns = p.layout.columns, packs = (width + pack - 1) / pack;
    for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < int64_t(packs) * columns;
         i += int64_t(p.layout.blocks) * block_threads) {
      const int k = static_cast<int>(i / columns) * pack, sample = static_cast<int>(i % columns);
      Pack<T> values{};
      if (sample < p.batch) {
        values = load_some(from + int64_t(sample) * width + k, width - k);
#pragma unroll
        for (int j = 0; j < pack; ++j) sanity.look(values.v[j]);
        if (emits) values = rho_of(p.input_activation, values);
      }
#pragma unroll
      for (int j = 0; j < pack; ++j)
        if (k + j < width) to[int64_t(k + j) * columns + sample] = values.v[j];
    }
  }

  __device__ void load_item(const Item<T>& item) const {
    const int l = item.layer, units = p.widths[l + 1];
    const bool has_seen = p.rules[l].dynamics == Dynamics::energy;
    for_each_pack(item, [&](int unit, int column) {
      Pack<T> start{}, shown{};
      if (p.initial[l])
#pragma unroll
        for (int j = 0; j < Pack<T>::size; ++j)
          if (column + j < p.batch) start.v[j] = p.initial[l][int64_t(column + j) * units + unit];
      if (has_seen) {
        shown = rho_of(p.rules[l].activation, start);
#pragma unroll
        for (int j = 0; j < Pack<T>::size; ++j)
          if (column + j >= p.batch) shown.v[j] = 0;
      }
#pragma unroll 1
      for (int buffer = 0; buffer < state_buffers; ++buffer) {
        store_pack(states.state(buffer, l, unit) + column, buffer == 0 ? start : Pack<T>{});
        if (has_seen) store_pack(states.seen(buffer, l, unit) + column, buffer == 0 ? shown : Pack<T>{});
      }
      if (l == 0) store_pack(p.workspace.sum + int64_t(unit) * p.layout.columns + column, Pack<T>{});
    });
    if (!p.layout.resident) return;
    for (int side = 0; side < 2; ++side) {
      const Operands<T> of = neighbours(item, side, 0);
      products_.template stage_left<packed_stride>(of, 0, padded_depth(of.depth), units - item.first,
                                                   packed(item, side));
    }
  }

  // All blocks share the tiles of a matrix, 16 rows each.
  __device__ int row_tiles(Kind kind) const {
    return ((kind == Kind::logits ? classes() : p.batch) + tile_units - 1) / tile_units;
  }
  __device__ int matrix_tiles(Kind kind) const { return row_tiles(kind) * (kind == Kind::low_rank ? 2 * p.layers : 1); }
  // `layer`: which matrix; of the low rank of_away and of_free of every layer.
  __device__ Item<T> matrix_tile(Kind kind, int index) const {
    return {index / row_tiles(kind), index % row_tiles(kind) * tile_units, nullptr};
  }

  __device__ static Rows<T> rows_of(T* base, int64_t stride) { return {base, stride, 0, 0, 0, false}; }
  __device__ static Rows<T> rows_of(int buffer, int layer, int first = 0) {
    return {nullptr, 0, buffer, layer, first, false};
  }

  // What a tile of units multiplies on one side, 0: from below, 1: from above, with the weights where the network has
  // them.
  __device__ Operands<T> neighbours(const Item<T>& item, int side, int buffer) const {
    const int l = item.layer, units = p.widths[l + 1], depth = side ? depth_above(p, l) : depth_below(p, l);
    Operands<T> of = nothing();
    of.depth = depth;
    if (depth == 0) return of;
    of.across = side == 0;
    const bool is_top = l + 1 == p.layers;
    if (side == 0)
      of.left = rows_of(p.weights[l] + int64_t(item.first) * depth, depth);
    else
      of.left = rows_of((p.free_feedback && !is_top ? p.feedback[l] : p.weights[l + 1]) + item.first, units);
    of.rows = side && is_top ? rows_of(p.workspace.error, p.layout.columns) : rows_of(buffer, side ? l + 1 : l - 1);
    return of;
  }

  __device__ static Operands<T> nothing() {
    Operands<T> of{};
    of.packed = -1;
    of.scale = 1;
    return of;
  }
  // How many products may add up to a tile, the empty ones among them: from both sides, and what C-EP corrects by.
  __device__ static int sides(const Step<T>& step) {
    return step.kind == Kind::move && (step.moved || step.corrected) ? 5 : 2;
  }
  // The products that add up to a tile.
  __device__ Operands<T> operands(const Item<T>& item, const Step<T>& step, int side, int seen) const {
    const int l = item.layer, columns = p.layout.columns;
    const Workspace<T>& w = p.workspace;
    Operands<T> of = nothing();
    if (step.kind == Kind::drive && side == 0) {
      of.across = true;
      of.depth = p.widths[0];
      of.left = rows_of(p.weights[0] + int64_t(item.first) * of.depth, of.depth);
      of.rows = rows_of(w.x, columns);
    } else if (step.kind == Kind::gram && side == 0) {
      of.depth = p.widths[0];
      of.left = rows_of(w.x + item.first, columns);
      of.rows = rows_of(w.x, columns);
    } else if (step.kind == Kind::logits && side == 0) {
      of.across = true;
      of.depth = p.widths[p.layers];
      of.left = rows_of(p.weights[p.layers] + int64_t(item.first) * of.depth, of.depth);
      of.rows = rows_of(step.from, p.layers - 1);
      of.rows.state = true;
    } else if (step.kind == Kind::low_rank && side < 2) {
      const int neighbour = l / 2 + 2 * side - 1;
      if (neighbour < 0 || neighbour >= p.layers) return of;
      of.depth = p.widths[neighbour + 1];
      of.left = of.rows = rows_of(step.from, neighbour);
      of.less = rows_of(kept_free, neighbour);
      of.left_column = item.first;
      of.subtracts = l % 2;
      of.scale = continual_blend<T>(p.rate[side ? neighbour : l / 2], p.weight_decay, p.nudge.beta, p.batch).scale;
    } else if (step.kind == Kind::move && side < 2) {
      of = neighbours(item, side, seen);
      if (side == 1 && l + 1 == p.layers && step.beta == 0) of.depth = 0;  // a readout pulls only while nudged
      if (p.layout.resident) {
        of.left = rows_of(packed(item, side), packed_stride);
        of.across = false;
        of.packed = static_cast<int>(packed(item, side) - dynamic_shared_memory<T>());
      }
    } else if (step.kind == Kind::move && (side == 2 ? step.moved && l == 0 : step.corrected)) {
      of.across = true;
      of.depth = p.batch;
      if (side == 2) {
        of.left = rows_of(w.sum + int64_t(item.first) * columns, columns);
        of.rows = rows_of(w.gram, columns);
      } else {
        of.left = rows_of(side == 3 ? step.from : kept_free, l, item.first);
        of.less = rows_of(kept_free, l, item.first);
        of.subtracts = side == 3;
        of.rows = rows_of(side == 3 ? w.of_away[l] : w.of_free[l], columns);
      }
    }
    return of;
  }

  // All products of a tile, added up, and what becomes of them.
  __device__ void multiply(const Item<T>& item, const Step<T>& step, int seen) {
    const int pass = p.layout.pass;
    const int units = step.kind == Kind::logits                                ? classes()
                      : step.kind == Kind::gram || step.kind == Kind::low_rank ? p.batch
                                                                               : p.widths[item.layer + 1];
    for (int first = 0; first < p.batch; first += pass) {
      __syncthreads();  // nobody reads what the last product left any more
      Tile tile(share_);
      for (int side = 0; side < sides(step); ++side)
        products_.add(tile, operands(item, step, side, seen), units - item.first, first, work_);
      tile.spill(work_);
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < tile.outputs(); i += block_threads) {
        const Output<T> out = tile.output(work_, i);
        const int unit = item.first + out.unit, column = first + out.column;
        if (unit < units && out.column < pass && column < p.batch) take_in(item.layer, unit, column, out.sum, step);
      }
    }
  }

  // The products' sums of one unit, or row of a matrix, and a pack of samples.
  __device__ void take_in(int layer, int unit, int column, Pack<T> sum, const Step<T>& step) {
    if (step.kind == Kind::move) {
      move(layer, unit, column, sum, step);
      return;
    }
    const Workspace<T>& w = p.workspace;
    T offset = 0;
    if (const T* bias = p.biases[step.kind == Kind::logits ? p.layers : 0]; bias && step.kind != Kind::low_rank)
      offset = step.kind == Kind::gram ? T(1) : bias[unit];
    T* matrix = step.kind == Kind::drive    ? w.drive
                : step.kind == Kind::gram   ? w.gram
                : step.kind == Kind::logits ? step.error
                : layer % 2                 ? w.of_free[layer / 2]
                                            : w.of_away[layer / 2];
#pragma unroll
    for (int j = 0; j < Pack<T>::size; ++j) sum.v[j] += offset;
    store_pack(matrix + int64_t(unit) * p.layout.columns + column, sum);
  }

  // One unit of a pack of samples, to which its neighbours bring `drive`.
  __device__ void move(int l, int unit, int column, Pack<T> drive, const Step<T>& step) {
    constexpr int pack = Pack<T>::size;
    const int64_t at = int64_t(unit) * p.layout.columns + column;
    const UnitRule rule = p.rules[l];
    const Pack<T> state = load_pack(states.state(step.from, l, unit) + column);
    if (l == 0) {
      Pack<T> loaded = load_pack(p.workspace.drive + at);
#pragma unroll
      for (int j = 0; j < pack; ++j) drive.v[j] += step.keep * loaded.v[j];
    } else if (p.biases[l]) {
      const T bias = p.biases[l][unit];
#pragma unroll
      for (int j = 0; j < pack; ++j) drive.v[j] += bias;
    }
    Pack<T> pull{};
    if (step.beta != 0 && l + 1 == p.layers && !p.readout) {
      const T* given = is_of_units(p.nudge.loss) ? p.workspace.target : p.workspace.error;
      pull = pull_of(p.nudge.loss, step.beta, load_pack(given + at), state);
    }
    const Pack<T> next = next_of(rule, drive, state, pull, p.nudge.at);
    T size = 0;  // also of samples past the last, which are numbers where the weights are
#pragma unroll
    for (int j = 0; j < pack; ++j) size += size_of(drive.v[j], next.v[j]);
    sanity.look(size);
    store_pack(states.state(step.to, l, unit) + column, next);
    if (rule.dynamics == Dynamics::energy)
      store_pack(states.seen(step.to, l, unit) + column, rho_of(rule.activation, next));
    if (p.limit < 0) return;
#pragma unroll
    for (int j = 0; j < pack; ++j) stays_ = stays_ && (stays(state.v[j], next.v[j], p.limit) || column + j >= p.batch);
  }

  const Operand products_;
  const typename Tile::Share share_;
  T* resident_;
  T* work_;
  bool stays_ = true;
};

}  // namespace ceprop::cuda
