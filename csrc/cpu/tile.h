// Everything else consists of these two products, on tiles that stay in registers.
//
// A panel is `width` units wide: two vectors. Everything is stored in panels: states as [panel][batch][width], weights
// into a panel of units as [panel][depth][width]. So a tile reads its weights as whole vectors, and its neighbours'
// states as broadcasts at constant offsets from one pointer; no operand is ever transposed or re-packed between steps.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../model/learning.h"
#include "set.h"
#include "team.h"

namespace ceprop::CEPROP_SET {

template <class Scalar_, int vector_bytes>
struct Tile {
  using Scalar = Scalar_;
  typedef Scalar Vector __attribute__((vector_size(vector_bytes)));
  typedef Scalar Unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(Scalar)), may_alias));
  static constexpr int lanes = vector_bytes / sizeof(Scalar);
  static constexpr int width = 2 * lanes;
  // The register file holds the sums of so many rows: it has 32 registers with AVX-512, 16 elsewhere.
  static constexpr int max_rows = vector_bytes == 64 ? 12 : 6;
};

// Keeps the compiler from adding a product before it is rounded. It does so where it likes, and then the same sum has
// other bits in another place.
template <class Vector>
inline Vector rounded(Vector product) {
#if defined(__x86_64__)
  asm("" : "+v"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

// Calls `body.template operator()<rows>()` with `rows` as a constant.
template <int most, class Body>
inline void with_constant_rows(int64_t rows, const Body& body) {
  if constexpr (most > 0) {
    if (rows == most)
      body.template operator()<most>();
    else
      with_constant_rows<most - 1>(rows, body);
  }
}

// Rows are taken in blocks of nearly equal size, as many as the register file holds.
template <class Tile>
inline int64_t row_blocks(int64_t rows) {
  return (rows + Tile::max_rows - 1) / Tile::max_rows;
}
template <class Tile>
inline Range row_block(int64_t rows, int64_t block) {
  const int64_t blocks = row_blocks<Tile>(rows);
  return {rows * block / blocks, rows * (block + 1) / blocks};
}

// The sums of this many products start from zero: so rounding stays that of their own size, not that of the total. As
// many weights of a panel fit the first-level cache, where all rows find them.
inline constexpr int64_t products_per_sum = 128;

// Sums start from these rows of `width` numbers, `stride` apart; 0 apart where all sums start from the same row.
template <class T>
struct Start {
  const T* rows;
  int64_t stride;
};

// Computes sums[row][lane] = start[row][lane] + sum_k a[k][row] b[k][lane] for the lanes of the first `vectors`
// vectors.
//   sums: [rows][width], may be where they start; in other lanes they stay at the start
//   a: panels of states, element (row, k) at a[(k / width) * panel_stride + row * width + k % width]
//   b: [depth][width]
template <class Tile, int rows, int vectors>
inline void multiply(typename Tile::Scalar* sums, const Start<typename Tile::Scalar>& start,
                     const typename Tile::Scalar* a, int64_t panel_stride, const typename Tile::Scalar* b,
                     int64_t depth) {
  using Vector = typename Tile::Vector;
  constexpr int width = Tile::width, lanes = Tile::lanes;
  Vector sum[rows][vectors] = {};
  for (; depth > 0; depth -= width, a += panel_stride) {
    const int64_t count = depth < width ? depth : width;
    for (int64_t k = 0; k < count; ++k, b += width) {
      Vector weights[vectors];
      for (int v = 0; v < vectors; ++v) {
        weights[v] = *reinterpret_cast<const Vector*>(b + v * lanes);
        __builtin_prefetch(b + 16 * width + v * lanes);
      }
#pragma GCC unroll 12
      for (int row = 0; row < rows; ++row) {
        const Vector broadcast = a[row * width + k] - Vector{};
        for (int v = 0; v < vectors; ++v) sum[row][v] += broadcast * weights[v];
      }
    }
  }
  const typename Tile::Scalar* from = start.rows;
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row, sums += width, from += start.stride)
    for (int v = 0; v < 2; ++v) {
      const Vector first = *reinterpret_cast<const Vector*>(from + v * lanes);
      *reinterpret_cast<Vector*>(sums + v * lanes) = v < vectors ? first + sum[row][v] : first;
    }
}

// Does the same for any number of rows, of products, at least one, and the vectors that hold the first `valid` lanes.
template <class Tile>
inline void add_products(typename Tile::Scalar* sums, Start<typename Tile::Scalar> start,
                         const typename Tile::Scalar* a, int64_t panel_stride, const typename Tile::Scalar* b,
                         int64_t depth, int64_t rows, int64_t valid) {
  static_assert(products_per_sum % Tile::width == 0);
  for (int64_t k = 0; k < depth; k += products_per_sum, a += products_per_sum / Tile::width * panel_stride) {
    const int64_t count = depth - k < products_per_sum ? depth - k : products_per_sum;
    for (int64_t block = 0; block < row_blocks<Tile>(rows); ++block) {
      const Range range = row_block<Tile>(rows, block);
      with_constant_rows<Tile::max_rows>(range.end - range.begin, [&]<int block_rows>() {
        const int64_t first = range.begin * Tile::width;
        const Start<typename Tile::Scalar> from{start.rows + range.begin * start.stride, start.stride};
        if (valid <= Tile::lanes)
          multiply<Tile, block_rows, 1>(sums + first, from, a + first, panel_stride, b + k * Tile::width, count);
        else
          multiply<Tile, block_rows, 2>(sums + first, from, a + first, panel_stride, b + k * Tile::width, count);
      });
    }
    start = {sums, Tile::width};
  }
}

// One term of a contrast is rows^T lanes, both panels [batch][width] of what two layers show.
template <class T>
struct Product {
  const T* rows;
  const T* lanes;
};

// Blends out[row][lane] with sum_products sum_batch rows[batch][row] * lanes[batch][lane].
//   out: row stride `stride`; only the first `valid` lanes are touched
template <class Tile, int rows, int vectors>
inline void outer_products(const Product<typename Tile::Scalar>* products, int count, int64_t batch,
                           const Blend<typename Tile::Scalar>& blend, typename Tile::Scalar* out, int64_t stride,
                           int64_t valid) {
  using T = typename Tile::Scalar;
  using Vector = typename Tile::Vector;
  using Unaligned = typename Tile::Unaligned;
  constexpr int width = Tile::width, lanes = Tile::lanes;
  Vector acc[rows][vectors] = {};
  for (int term = 0; term < count; ++term) {
    const T* left = products[term].rows;
    const T* right = products[term].lanes;
    for (int64_t sample = 0; sample < batch; ++sample, left += width, right += width) {
      Vector r[vectors];
      for (int v = 0; v < vectors; ++v) r[v] = *reinterpret_cast<const Vector*>(right + v * lanes);
#pragma GCC unroll 12
      for (int row = 0; row < rows; ++row) {
        const Vector broadcast = left[row] - Vector{};
        for (int v = 0; v < vectors; ++v) acc[row][v] += broadcast * r[v];
      }
    }
  }
  // What is blended has the same bits wherever it lies: the lanes of a vector that is not whole go the same way.
  const auto store = [&](const auto& blended) __attribute__((always_inline)) {
    if (valid >= vectors * lanes) {
#pragma GCC unroll 12
      for (int row = 0; row < rows; ++row, out += stride)
        for (int v = 0; v < vectors; ++v) {
          Unaligned* to = reinterpret_cast<Unaligned*>(out + v * lanes);
          *to = blended(Vector(*to), acc[row][v]);
        }
      return;
    }
    for (int row = 0; row < rows; ++row, out += stride)
      for (int v = 0; v < vectors; ++v) {
        const int64_t count = std::clamp<int64_t>(valid - v * lanes, 0, lanes);
        Vector to{};
        std::memcpy(&to, out + v * lanes, count * sizeof(T));
        to = blended(to, acc[row][v]);
        std::memcpy(out + v * lanes, &to, count * sizeof(T));
      }
  };
  if (blend.fresh)
    store([&](const Vector&, const Vector& sum) { return blend.scale * sum; });
  else if (blend.decay == 0)
    store([&](const Vector& to, const Vector& sum) { return to + rounded(blend.scale * sum); });
  else
    store([&](const Vector& to, const Vector& sum) {
      return to + (rounded(blend.scale * sum) - rounded(blend.decay * to));
    });
}

// Swaps rows[i][j] and rows[j][i]: blocks of 1, 2, 4, ... lanes change places across the diagonal.
template <class Tile, int block = 1>
inline void transpose(typename Tile::Vector* rows) {
  if constexpr (block < Tile::lanes) {
    const auto swap = [&]<int... lane>(std::integer_sequence<int, lane...>) {
      constexpr int lanes = Tile::lanes;
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (i & block) continue;
        const typename Tile::Vector a = rows[i], b = rows[i + block];
        rows[i] = __builtin_shufflevector(a, b, (lane & block ? lanes + lane - block : lane)...);
        rows[i + block] = __builtin_shufflevector(a, b, (lane & block ? lanes + lane : lane + block)...);
      }
    };
    swap(std::make_integer_sequence<int, Tile::lanes>());
    transpose<Tile, 2 * block>(rows);
  }
}

// Takes scalar products of `rows` samples with `columns` others, over the units of a layer: as many as a vector holds.
template <class Tile>
struct Dots {
  using T = typename Tile::Scalar;
  using Vector = typename Tile::Vector;
  static constexpr int rows = Tile::lanes >= 16 ? 4 : Tile::lanes >= 4 ? 2 : 1, columns = Tile::lanes / rows;

  // Lane i * columns + j becomes left[i] . right[j], where each points to a sample's first lane in the first of its
  // panels.
  static Vector of(const T* const (&left)[rows], const T* const (&right)[columns], int64_t panel_stride,
                   int64_t units) {
    Vector sums[Tile::lanes] = {};
    const T *a[rows], *b[columns];
    const auto add = [&]() __attribute__((always_inline)) {
      for (int v = 0; v < 2; ++v) {
        Vector x[rows];
        for (int i = 0; i < rows; ++i) x[i] = *reinterpret_cast<const Vector*>(a[i] + v * Tile::lanes);
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) {
          const Vector y = *reinterpret_cast<const Vector*>(b[j] + v * Tile::lanes);
          for (int i = 0; i < rows; ++i) sums[i * columns + j] += x[i] * y;
        }
      }
    };
    const int64_t whole = units / Tile::width, rest = units % Tile::width;
    for (int64_t panel = 0; panel < whole; ++panel) {
      for (int i = 0; i < rows; ++i) a[i] = left[i] + panel * panel_stride;
      for (int j = 0; j < columns; ++j) b[j] = right[j] + panel * panel_stride;
      add();
    }
    if (rest > 0) {  // the lanes past the last unit belong to nobody
      alignas(64) T last[rows][Tile::width] = {};
      for (int i = 0; i < rows; ++i) {
        std::memcpy(last[i], left[i] + whole * panel_stride, rest * sizeof(T));
        a[i] = last[i];
      }
      for (int j = 0; j < columns; ++j) b[j] = right[j] + whole * panel_stride;
      add();
    }
    transpose<Tile>(sums);
    Vector result{};
#pragma GCC unroll 16
    for (int lane = 0; lane < Tile::lanes; ++lane) result += sums[lane];
    return result;
  }
};

}  // namespace ceprop::CEPROP_SET
