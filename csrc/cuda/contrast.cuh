// The local contrast between two state buffers, as sums of outer products over the batch; the formulas are those of
// cpu/dense/contrast.h, computed on tiles of 16 units of one layer and 64 of the other.
//
// A contrast is upper^T lower, summed over one term or two:
//   term 0   what the upper layer's units moved by, with what the lower layer shows
//   term 1   what the upper layer shows, with what the lower layer's units moved by
#pragma once

#include "relaxation.cuh"

namespace ceprop::cuda {

// A row for each unit: what layer `layer` shows in buffer `later`, less what it shows in `earlier` if that is not
// negative; or, where `rows` is not null, those rows.
template <class T>
struct Shown {
  const T* rows;
  int layer, later, earlier;
  bool state;  // the layer shows its state, not what neighbours see of it
};

// The contrast of one connection, as a sum of the terms `first` to `last`.
struct Sum {
  enum class Of { connection, input_sums, readout } of;
  int c;  // connection
  int first, last;
  Between between;
  int phase;  // at whose end the readout learns, with the states in between.later
};

template <class T, class Tile, class States>
class Contrast {
 public:
  using Network = Relaxation<T, Tile, States>;

  __device__ explicit Contrast(const Network& network)
      : network_(network), p_(network.p), fours_((p_.layout.pass / pack + 3) / 4), inverse_(256 / fours_ + 1) {}

  // What moves a copy of the weights of connection c.
  __device__ Sum sum_of(int c, Copy copy, const Between& between) const {
    const Terms terms = terms_of(p_.learns, c == 0, copy);
    return {Sum::Of::connection, c, terms.above_moves ? 0 : 1, terms.below_moves ? 1 : 0, between, 0};
  }

  __device__ Shown<T> moved(int layer, const Between& between) const {
    return {nullptr, layer, between.later, between.earlier, moves_states(p_.learns)};
  }

  // The sums of a tile, units [first, first + 16) by [other_first, other_first + 64), are blended into
  // out[unit * next_own + other * next_other], where next_own < next_other in packs of units, those past the last too.
  // `upper_is_own`: the 16 belong to the upper layer. All threads of a block call this.
  __device__ void tile(const Sum& of, bool upper_is_own, int first, int units, int other_first, int others,
                       const Blend<T>& blend, T* out, int64_t next_own, int64_t next_other) const {
    const int pass = p_.layout.pass, stride = pass + pack;  // neighbouring rows begin in different banks
    T* own = network_.work();                               // [2][tile_units][stride]
    T* other = own + 2 * tile_units * stride;               // [2][tile_others][stride]
    const int k = Network::Operand::row_in_turn(static_cast<int>(threadIdx.x) / 4);
    const int group = 4 * (static_cast<int>(threadIdx.x) % 4);
    T sum[4] = {};
    for (int column = 0; column < p_.batch; column += pass) {
      __syncthreads();
      for (int term = of.first; term <= of.last; ++term)
        for (int side = 0; side < 2; ++side) {
          const bool is_own = side == 0;
          stage(shown(of, term, upper_is_own == is_own), is_own, is_own ? first : other_first, is_own ? units : others,
                column, (is_own ? own : other) + term * (is_own ? tile_units : tile_others) * stride);
        }
      __syncthreads();
      for (int term = of.first; term <= of.last; ++term)
        for (int b = 0; b < pass; b += pack) {
          const Pack<T> y = load_pack(other + (term * tile_others + k) * stride + b);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Pack<T> x = load_pack(own + (term * tile_units + own_row(group + i)) * stride + b);
#pragma unroll
            for (int j = 0; j < pack; ++j) sum[i] += x.v[j] * y.v[j];
          }
        }
    }
    if (other_first + k >= others) return;
    T* to = out + (first + group) * next_own + (other_first + k) * next_other;
    if (next_own < next_other) {
      // In float64 every second row begins with its other pack, in other banks.
      const bool flips = pack < 4 && k % 2;
#pragma unroll
      for (int i = 0; i < 4; i += pack) {
        constexpr int flip = pack % 4;
        T* at = to + (flips ? i ^ flip : i);
        Pack<T> now = load_pack(at);
#pragma unroll
        for (int j = 0; j < pack; ++j) now.v[j] = blend(now.v[j], flips ? sum[(i ^ flip) + j] : sum[i + j]);
        store_pack(at, now);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first + group + i < units) to[i * next_own] = blend(to[i * next_own], sum[i]);
    }
  }

  // A row-major [upper][lower] matrix blended with a contrast, by all blocks. No barrier.
  __device__ void add_to_matrix(const Sum& of, int upper, int lower, const Blend<T>& blend, T* matrix) const {
    const int tiles = (upper + tile_units - 1) / tile_units, chunks = (lower + tile_others - 1) / tile_others;
    for (int index = static_cast<int>(blockIdx.x); index < tiles * chunks; index += p_.layout.blocks)
      tile(of, true, index / chunks * tile_units, upper, index % chunks * tile_others, lower, blend, matrix, lower, 1);
  }

  // out[unit] is blended with the sum over the batch of what is shown of the units [first, first + 16), by this block.
  __device__ void add_batch_sum(const Shown<T>& shown, int first, int units, const Blend<T>& blend, T* out) const {
    const int u = first + static_cast<int>(threadIdx.x) / 16, lane = static_cast<int>(threadIdx.x) % 16;
    T sum = 0;
    if (u < units)
      for (int column = pack * lane; column < p_.batch; column += 16 * pack) {
        const Pack<T> seen = load(shown, u, column);
#pragma unroll
        for (int j = 0; j < pack; ++j) sum += seen.v[j];
      }
    for (int bits = 8; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits, 16);
    if (u < units && lane == 0) out[u] = blend(out[u], sum);
  }
  // The same for all units, by all blocks.
  __device__ void add_batch_sums(const Shown<T>& shown, int units, const Blend<T>& blend, T* out) const {
    for (int first = static_cast<int>(blockIdx.x) * tile_units; first < units; first += p_.layout.blocks * tile_units)
      add_batch_sum(shown, first, units, blend, out);
  }

  // What a unit shows of a pack of samples, zeros past the last.
  __device__ Pack<T> load(const Shown<T>& shown, int unit, int column) const {
    const T* later = shown.rows ? shown.rows + int64_t(unit) * p_.layout.columns : row(shown, shown.later, unit);
    Pack<T> got = load_pack(later + column);
    if (shown.earlier >= 0) got -= load_pack(row(shown, shown.earlier, unit) + column);
#pragma unroll
    for (int j = 0; j < pack; ++j) got.v[j] = column + j < p_.batch ? got.v[j] : T(0);
    return got;
  }

 private:
  static constexpr int pack = Pack<T>::size;

  __device__ const T* row(const Shown<T>& shown, int buffer, int unit) const {
    const States& states = network_.states;
    return shown.state ? states.state(buffer, shown.layer, unit) : states.seen(buffer, shown.layer, unit);
  }

  __device__ Shown<T> shown(const Sum& of, int term, bool upper) const {
    const int c = of.c;
    const Between between = of.between;
    if (of.of == Sum::Of::readout)
      return {upper ? p_.workspace.end_error[of.phase] : nullptr, p_.layers - 1, between.later, -1, true};
    if (!upper && c == 0) return {p_.workspace.x, 0, 0, -1, false};
    if (of.of == Sum::Of::input_sums) return {p_.workspace.sum, 0, 0, -1, false};
    const int layer = upper ? c : c - 1;
    if (upper == (term == 0)) return moved(layer, between);
    const int held = upper ? between.shown_above(p_.learns) : between.shown_below(p_.learns);
    return {nullptr, layer, held, -1, false};
  }

  // Where one of a tile's own units is staged: 8 side by side, which are stored at once, and 4 at a distance of 4,
  // which threads side by side read at once, lie in different rows of 8.
  __device__ static int own_row(int unit) {
    const int four = unit / 4, in_four = unit % 4;
    return four / 2 * 8 + (four * 2 + in_four + in_four / 2 * 2) % 8;
  }

  // to[row][stride] <- what is shown of a tile's units from `first` on, for one pass of the samples; zeros past the
  // end.
  __device__ void stage(const Shown<T>& shown, bool is_own, int first, int units, int column, T* to) const {
    // A warp brings 4 packs of 8 rows: whole sectors of memory, and 8 banks' worth of rows.
    const int pass = p_.layout.pass, stride = pass + pack;
    // i / 32 / fours_, exact as there are at most 4 fours and 32 warps' worth of packs: no division.
    const auto eight_of = [&](int i) { return i / 32 * inverse_ / 256; };
    const auto unit_of = [&](int i) { return eight_of(i) * 8 + i % 8; };
    const auto row_of = [&](int i) { return is_own ? own_row(unit_of(i)) : unit_of(i); };
    const auto column_of = [&](int i) { return ((i / 32 - eight_of(i) * fours_) * 4 + i % 32 / 8) * pack; };
    bring((is_own ? tile_units : tile_others) * fours_ * 4,
          [&](int i) {
            const int unit = first + unit_of(i);
            const bool there = unit < units && column_of(i) < pass && column + column_of(i) < p_.layout.columns;
            return there ? load(shown, unit, column + column_of(i)) : Pack<T>{};
          },
          [&](int i, const Pack<T>& got) {
            if (column_of(i) < pass) store_pack(to + row_of(i) * stride + column_of(i), got);
          });
  }

  const Network& network_;
  const Problem<T>& p_;
  int fours_, inverse_;  // groups of 4 packs in a pass, and 256 over them
};

}  // namespace ceprop::cuda
