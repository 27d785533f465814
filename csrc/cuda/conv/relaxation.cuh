// A chain of convolutions on its way to a fixed point, and what its contrasts are summed up from: the part of one
// block.
//
// A step lifts the states through all connections, then, after a barrier of all blocks, moves them: what lifting gives
// is the drive from below, and the layer's states brought back to the places that the pooling picked, by whose
// transposed product the layer below is driven. Tiles of all jobs of a part go round among the blocks.
#pragma once

#include "../sanity.cuh"
#include "../settling.cuh"
#include "../units.cuh"
#include "parts.cuh"

namespace ceprop::cuda::conv {

template <class T>
class Relaxation {
 public:
  __device__ explicit Relaxation(const Problem<T>& problem)
      : p(problem), parts(problem), sanity(problem, problem.workspace.broken), work_(dynamic_shared_memory<T>()) {}

  const Problem<T>& p;
  const Parts<T> parts;
  Sanity<T> sanity;

  __device__ static void sync(CALLED_FROM) { cooperative_groups::this_grid().sync(CALLER); }

  // Fills in the tables, and brings x, the target and the starting states to where the steps read them. Ends with a
  // barrier.
  __device__ void load() {
    sanity.begin();
    Tables<T>(p).fill();
    const bool energy = has_energy();
    const Link& input = p.links[0];
    for_each(input.channels_below, input.pixels_below, [&](int64_t given, int64_t at) {
      sanity.look(p.x[given]);
      p.workspace.x[at] = energy ? shown(p.input_activation, p.x[given]) : p.x[given];
    });
    if (p.target)
      for_each(classes(), 1, [&](int64_t given, int64_t at) {
        sanity.look(p.target[given]);
        p.workspace.target[at] = p.target[given];
      });
    for (int l = 0; l < p.layers; ++l)
      for_each(p.links[l].channels, p.links[l].pixels, [&](int64_t given, int64_t at) {
        const T start = p.initial[l] ? p.initial[l][given] : T(0);
        p.workspace.state[0][l][at] = start;
        if (energy) p.workspace.seen[0][l][at] = shown(p.rules[l].activation, start);
      });
    sync();
  }

  // Remembers, if states moved, whether one did by more than the tolerance. Ends with a barrier.
  __device__ void take(const Part<T>& part) {
    if (part.kind == Kind::move && part.half == 0) stays_ = true;
    int index = static_cast<int>(blockIdx.x);  // of a tile, counted from the first of a job
    for (int number = 0; number < parts.jobs_of(part.kind); ++number) {
      const Job job = parts.job_of(part, number);
      const int tiles = parts.tiles_of(part, job);
      for (; index < tiles; index += p.layout.blocks) multiply(part, job, index);
      index -= tiles;
    }
    sync();
  }

  __device__ bool may_stop(int count) const {
    return cuda::may_stop(p, *this, stays_, count, p.layout.blocks, p.workspace.settled);
  }
  __device__ void note_steps(int phase, int count) const {
    if (blockIdx.x == 0 && threadIdx.x == 0) p.steps_used[phase] = count;
  }

  // All states, each thread those that it will read itself in store(). No barrier.
  __device__ void copy_states(int from, int to) const {
    const Workspace<T>& w = p.workspace;
    const bool energy = has_energy();
    for (int l = 0; l < p.layers; ++l)
      for_each(p.links[l].channels, p.links[l].pixels, [&](int64_t, int64_t at) {
        w.state[to][l][at] = w.state[from][l][at];
        if (energy) w.seen[to][l][at] = w.seen[from][l][at];
      });
  }
  // out[l] [B, channels, height, width] <- the states. No barrier.
  __device__ void store(int buffer, T* const* out) const {
    for (int l = 0; l < p.layers; ++l)
      for_each(p.links[l].channels, p.links[l].pixels,
               [&](int64_t given, int64_t at) { out[l][given] = p.workspace.state[buffer][l][at]; });
  }

  // error = scale times that of the outputs in `buffer`, or of a readout's logits, which are in `error`. No barrier:
  // those of what follows come before it is read.
  __device__ void take_error(int buffer, T scale, T* error) {
    const T* logits = p.readout ? error : p.workspace.state[buffer][p.layers - 1];
    const int first = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
    for (int sample = first; sample < p.batch; sample += p.layout.blocks * block_threads) {
      const auto logit = [&](int64_t c) { return __ldcg(logits + c * p.batch + sample); };
      const auto target = [&](int64_t c) { return p.workspace.target[c * p.batch + sample]; };
      const auto slot = [&](int64_t c) -> T& { return error[c * p.batch + sample]; };
      sanity.note(sample_error(classes(), scale, logit, target, slot));
    }
  }

 private:
  // All products of a tile, added up, and what becomes of them.
  __device__ void multiply(const Part<T>& part, const Job& job, int index) {
    const int units = parts.units_of(part, job), columns = parts.columns_of(part, job),
              at_once = parts.columns_at_once(part, job);
    const int unit_tiles = parts.divided(units, tile_units), column_tiles = parts.divided(columns, at_once);
    const int unit = index % unit_tiles * tile_units, column = index / unit_tiles % column_tiles * at_once;
    const int slice = index / unit_tiles / column_tiles;
    const int end = column + at_once < columns ? column + at_once : columns;
    __syncthreads();  // nobody reads what the last product left any more
    FmaTile<T> tile(typename FmaTile<T>::Share(parts.pass_of(columns)));
    const Products<T> products(p.layout.depth, parts.pass_of(columns), work_);
    for (int term = 0; term < 2; ++term)
      products.add(tile, parts.operands(part, job, term, slice), unit, units, column, end);
    tile.spill(work_);
    __syncthreads();
    if (part.kind != Kind::move && part.kind != Kind::contrast) {
      pool(part, job, tile, unit, column, end);
      return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < tile.outputs(); i += block_threads) {
      const Output<T> out = tile.output(work_, i);
      if (unit + out.unit >= units || column + out.column >= end) continue;
      if (part.kind == Kind::move)
        move(part, job.c, unit + out.unit, column + out.column, end, out.sum);
      else
        put_partial(job, slice, unit + out.unit, column + out.column, end, out.sum);
    }
  }

  // ---- what becomes of their sums ----

  // The windows of a tile: their drive, and a map's numbers at the places picked.
  __device__ void pool(const Part<T>& part, const Job& job, const FmaTile<T>& tile, int first_unit, int column,
                       int end) const {
    const int c = job.c;
    const Link& link = p.links[c];
    const Workspace<T>& w = p.workspace;
    const bool is_max = link.pool == Pool::max, is_readout = part.kind == Kind::logits;
    const int window = link.window, windows = (end - column) / window, at = p.batch * link.positions;
    const T *values = nullptr, *less = nullptr;
    if (part.kind == Kind::lift) {
      values = w.seen[part.half == 0 ? part.from : part.to][c];
    } else if (!is_readout) {
      values = parts.above(part, job, parts.has_one_pick(job) || job.which == 1);
      if (parts.has_one_pick(job)) less = parts.above(part, job, 0);
    }
    T* drive = job.drives ? (is_readout ? part.error : w.drive[c]) : nullptr;
    T* spread = job.unpools ? w.unpooled[part.kind == Kind::lift ? 0 : job.copy][job.which][c] : nullptr;
    const T* biases = job.copy == 0 ? p.biases[c] : nullptr;
    for (int i = static_cast<int>(threadIdx.x); i < tile_units * windows; i += block_threads) {
      const int u = i / windows, unit = first_unit + u, first = i % windows * window;
      if (unit >= link.channels) break;
      const int pooled_at = unit * p.batch * link.pixels + column / window + i % windows;
      int picked = 0;
      T pooled = 0;
      if (job.multiplies) {
        const T bias = biases ? biases[unit] : T(0);
        for (int place = 0; place < window; ++place) {
          const T sum = tile.sum(work_, u, first + place) + bias;
          if (!is_max) {
            pooled += sum;
          } else if (place == 0 || sum > pooled || sum != sum) {  // the first of equal ones; one that is no number
            pooled = sum;
            picked = place;
          }
        }
      }
      if (drive) drive[pooled_at] = is_max ? pooled : pooled / T(window);
      if (!spread) continue;
      const T value = less ? values[pooled_at] - less[pooled_at] : values[pooled_at];
      for (int place = 0; place < window; ++place)
        spread[unit * at + w.positions[c][column + first + place].left] =
            is_max ? (place == picked ? value : T(0)) : value / T(window);
    }
  }

  // One unit of layer l and a pack of columns, to which the layer above brings `drive`.
  __device__ void move(const Part<T>& part, int l, int unit, int column, int end, Pack<T> drive) {
    constexpr int pack = Pack<T>::size;
    const Workspace<T>& w = p.workspace;
    const UnitRule rule = p.rules[l];
    const int pixels = parts.pixels_of_unit(l), columns = p.batch * p.links[l].pixels;
    const int first = unit / pixels * columns + unit % pixels + column * pixels;
    const bool pulls = part.beta != 0 && l + 1 == p.layers && !p.readout;
    const T* given = is_of_units(p.nudge.loss) ? w.target : w.error;
    Pack<T> state{}, pull{};
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      if (column + j >= end) continue;
      const int at = first + j * pixels;
      state.v[j] = w.state[part.from][l][at];
      drive.v[j] += w.drive[l][at];
      if (!pulls) continue;
      pull.v[j] = given[at];
    }
    if (pulls) pull = pull_of(p.nudge.loss, part.beta, pull, state);
    const Pack<T> next = next_of(rule, drive, state, pull, p.nudge.at);
    Pack<T> seen{};
    if (has_energy()) seen = rho_of(rule.activation, next);
    const bool asks = p.limit >= 0;
    T size = 0;
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      if (column + j >= end) continue;
      const int at = first + j * pixels;
      size += size_of(drive.v[j], next.v[j]);
      w.state[part.to][l][at] = next.v[j];
      if (has_energy()) w.seen[part.to][l][at] = seen.v[j];
      if (!asks) continue;
      stays_ = stays_ && stays(state.v[j], next.v[j], p.limit);
    }
    sanity.look(size);
  }

  __device__ void put_partial(const Job& job, int slice, int unit, int column, int end, const Pack<T>& sum) const {
    const Link& link = p.links[job.c];
    T* to = p.workspace.partial[job.c] + (int64_t(job.copy) * link.slices + slice) * link.channels * link.depth +
            int64_t(unit) * link.depth + column;
#pragma unroll
    for (int j = 0; j < Pack<T>::size; ++j)
      if (column + j < end) to[j] = sum.v[j];
  }

  // ---- ----

  __device__ bool has_energy() const { return p.rules[0].dynamics == Dynamics::energy; }
  __device__ int classes() const { return p.links[p.layers + p.readout - 1].channels; }
  __device__ static T shown(Activation activation, T x) { return rho_of(activation, Pack<T>{x}).v[0]; }

  // body(given, at) for all numbers of a batch of maps, given [B][channels][pixels], at [channels][B][pixels], by all
  // blocks; always the same thread for the same number.
  template <class Body>
  __device__ void for_each(int channels, int pixels, const Body& body) const {
    const int64_t count = int64_t(p.batch) * channels * pixels;
    for (int64_t given = int64_t(blockIdx.x) * block_threads + threadIdx.x; given < count;
         given += int64_t(p.layout.blocks) * block_threads) {
      const int64_t map = given / pixels;
      body(given, (map % channels * p.batch + map / channels) * pixels + given % pixels);
    }
  }

  T* work_;
  bool stays_ = true;
};

}  // namespace ceprop::cuda::conv
