// A tile's products: their operands come to shared memory in parts of the depth, the next while one is multiplied.
#pragma once

#include "states.cuh"
#include "tiles.cuh"

namespace ceprop::cuda {

// Rows of numbers in memory: row k at base + k * stride, or, base null, of layer `layer` in `buffer` what unit first +
// k shows to its neighbours, or its state.
template <class T>
struct Rows {
  const T* base;
  int64_t stride;
  int buffer, layer, first;
  bool state;
};

// One product: sum over k < depth of scale * (left - less) of unit u and neighbour k with row k of `rows`.
// `across`: `left` has a row for every unit, else one for every neighbour, from `left_column` on; `packed`: where in
// shared memory it is as a tile reads it, or -1. `less` counts if subtracts. Depth 0: nothing.
template <class T>
struct Operands {
  Rows<T> left, less, rows;
  int depth, left_column, packed;
  T scale;
  bool across, subtracts;
};

template <class T, class Tile, class States>
class Products {
 public:
  // Weights that stay in shared memory have this stride.
  static constexpr int packed_stride = Tile::left_stride;

  // The order in which threads take rows of tile_units numbers side by side: where rows are padded, every second one,
  // so that two of them fall into different banks.
  __device__ static int row_in_turn(int index) {
    return Tile::left_stride == tile_units ? index : index / 8 * 8 + index % 4 * 2 + index / 4 % 2;
  }

  __device__ Products(const Problem<T>& problem, const States& states) : p_(problem), states_(states) {
    // In a cluster 8 threads stay within a row.
    const int needed = Tile::packs_of_row(p_.layout.pass);
    const int lanes = States::in_shared_memory ? (needed + 7) / 8 * 8 : needed;
    rows_at_once_ = block_threads / lanes;
    row_ = static_cast<int>(threadIdx.x) / lanes;
    column_ = pack * (static_cast<int>(threadIdx.x) % lanes);
  }

  __device__ const T* row(const Rows<T>& rows, int k) const {
    if (rows.base) return rows.base + k * rows.stride;
    return rows.state ? states_.state(rows.buffer, rows.layer, rows.first + k)
                      : states_.seen(rows.buffer, rows.layer, rows.first + k);
  }

  // Adds a product for the samples from `column` on to the tile's. `units`: how many there are, of which the tile takes
  // the first. Ends with a barrier of the block.
  __device__ void add(Tile& tile, const Operands<T>& of, int units, int column, void* work) const {
    if (of.depth == 0) return;
    using Staged = typename Tile::Staged;
    const int depth = p_.layout.depth, pass = p_.layout.pass, stride = Tile::rows_stride(pass);
    Staged* left = static_cast<Staged*>(work);            // [2][depth][left_stride]
    Staged* rows = left + 2 * depth * Tile::left_stride;  // [2][depth][stride]
    // The part from k on has so many rows, padded as tiles take it.
    const auto rows_of_part = [&](int k) {
      return min(depth, (of.depth - k + Tile::depth_step - 1) / Tile::depth_step * Tile::depth_step);
    };
    const auto fetch = [&](int k, int buffer) {
      if (k < of.depth) {
        const int count = rows_of_part(k);
        if (of.packed < 0 || Tile::converts)
          stage_left<Tile::left_stride>(of, k, count, units, left + buffer * depth * Tile::left_stride);
        stage_rows(of, column, k, count, rows + buffer * depth * stride);
      }
      __pipeline_commit();
    };
    fetch(0, 0);
    for (int k = 0, buffer = 0; k < of.depth; k += depth, buffer ^= 1) {
      fetch(k + depth, buffer ^ 1);
      __pipeline_wait_prior(1);
      __syncthreads();
      const Staged* from = left + buffer * depth * Tile::left_stride;
      // This counts from the begin of shared memory, so that the compiler knows which memory it is.
      if constexpr (!Tile::converts)
        if (of.packed >= 0) from = dynamic_shared_memory<T>() + of.packed + k * packed_stride;
      tile.add(from, rows + buffer * depth * stride, rows_of_part(k));
      __syncthreads();
    }
  }

  // to[row][u] <- scaled left factors of neighbour k + row and unit u, for `rows` rows; zeros past the depth and the
  // last unit.
  template <int stride, class Number>
  __device__ void stage_left(const Operands<T>& of, int k, int rows, int units, Number* to) const {
    const int depth = of.depth - k;
    const auto load = [&](int row, int u, int there) {
      if (there <= 0) return Pack<T>{};
      const int line = of.across ? u : k + row, first = of.left_column + (of.across ? k + row : u);
      Pack<T> got = load_some(this->row(of.left, line) + first, there);
      if (of.subtracts) got -= load_some(this->row(of.less, line) + first, there);
#pragma unroll
      for (int j = 0; j < pack; ++j) got.v[j] *= of.scale;
      return got;
    };
    if (of.across) {
      // A pack becomes a column of `to`: 16 units side by side, and the next packs' numbers in another order, so that
      // they fall into other banks.
      constexpr int flip = sizeof(Number) != 4 ? 0 : stride % 32 == 16 ? 1 : 2;
      const auto row_of = [](int i) { return i / tile_units * pack; };
      bring((rows + pack - 1) / pack * tile_units,
            [&](int i) { return load(row_of(i), i % tile_units, i % tile_units < units ? depth - row_of(i) : 0); },
            [&](int i, const Pack<T>& got) {
              Number* at = to + row_of(i) * stride + i % tile_units;
              const bool flips = i / tile_units % 2;
#pragma unroll
              for (int j = 0; j < pack; ++j)
                at[(flips ? j ^ flip : j) * stride] = staged<Number>(flips ? got.v[j ^ flip] : got.v[j]);
            });
    } else {
      // 8 threads stay within a row of a cluster's states: the next may begin in the same banks.
      constexpr int bits_of_packs = pack == 4 ? 2 : 3;
      const int bits = States::in_shared_memory && !of.left.base ? 3 : bits_of_packs;
      const auto row_of = [&](int i) { return row_in_turn(i >> bits); };
      const auto unit_of = [&](int i) { return (i & ((1 << bits) - 1)) * pack; };
      bring(
          rows << bits,
          [&](int i) {
            return load(row_of(i), unit_of(i), row_of(i) < depth ? min(units, tile_units) - unit_of(i) : 0);
          },
          [&](int i, const Pack<T>& got) {
            if (unit_of(i) < tile_units) store_staged(to + row_of(i) * stride + unit_of(i), got);
          });
    }
  }

 private:
  static constexpr int pack = Pack<T>::size;

  template <class Number>
  __device__ static Number staged(T number) {
    if constexpr (std::is_same_v<Number, T>)
      return number;
    else
      return Tile::staged(number);
  }
  template <class Number>
  __device__ __forceinline__ static void store_staged(Number* to, const Pack<T>& got) {
    struct alignas(pack * sizeof(Number)) All {
      Number v[pack];
    } all;
#pragma unroll
    for (int j = 0; j < pack; ++j) all.v[j] = staged<Number>(got.v[j]);
    *reinterpret_cast<All*>(to) = all;
  }

  // to[row][columns of the pass] <- `count` rows from k on; zeros past the depth and the samples. A thread brings the
  // same columns of every row that it takes.
  __device__ void stage_rows(const Operands<T>& of, int column, int k, int count, typename Tile::Staged* to) const {
    if (row_ >= rows_at_once_ || column_ >= p_.layout.pass) return;
    const int stride = Tile::rows_stride(p_.layout.pass), first = column + column_;
    const int there = first < p_.layout.columns ? of.depth - k : 0;
    typename Tile::Staged* target = to + row_ * stride + column_;
    if constexpr (Tile::converts || States::in_shared_memory) {
      bring(
          row_, count, rows_at_once_,
          [&](int r) { return r < there ? load_pack(row(of.rows, k + r) + first) : Pack<T>{}; },
          [&](int r, const Pack<T>& got) { store_staged(target + (r - row_) * stride, got); });
    } else {
      // Rows of states, too, follow each other at the distance of their columns.
      const T* from = row(of.rows, k + row_) + first;
      const int64_t step = int64_t(rows_at_once_) * p_.layout.columns;
      for (int r = row_; r < count; r += rows_at_once_, from += step, target += rows_at_once_ * stride) {
        if (r < there)
          __pipeline_memcpy_async(target, from, 16);
        else
          store_pack(target, Pack<T>{});
      }
    }
  }

  const Problem<T>& p_;
  const States states_;  // a copy: a reference into the object that holds this would keep all of it out of registers
  int rows_at_once_, row_, column_;  // of what the thread brings of a pass
};

}  // namespace ceprop::cuda
