// The two products that everything else is made of, on tiles that stay in registers.
//
// A panel is `width` units wide: two vectors. Everything is stored in panels: states as [panel][batch][width], weights
// into a panel of units as [panel][depth][width]. So a tile reads its weights as whole vectors, and its neighbours'
// states as broadcasts at constant offsets from one pointer; no operand is ever transposed or re-packed between steps.
//
// Included by one source file per instruction set, inside its namespace; see kernels_impl.h.
#pragma once

template <class Scalar_, int vector_bytes>
struct Tile {
  using Scalar = Scalar_;
  typedef Scalar Vector __attribute__((vector_size(vector_bytes)));
  typedef Scalar Unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(Scalar)), may_alias));
  static constexpr int lanes = vector_bytes / sizeof(Scalar);
  static constexpr int width = 2 * lanes;
  // Rows whose accumulators fit the register file: 32 registers with AVX-512, 16 elsewhere.
  static constexpr int max_rows = vector_bytes == 64 ? 12 : 6;
  static constexpr int update_rows = vector_bytes == 64 ? 8 : 4;  // divides width
};

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

// acc[row][lane] += sum_k a[k][row] b[k][lane]
//   a: panels of states, element (row, k) at a[(k / width) * panel_stride + row * width + k % width]
//   b: [depth][width]
template <class Tile, int rows>
inline void multiply(typename Tile::Vector (&acc)[rows][2], const typename Tile::Scalar* a, int64_t panel_stride,
                     const typename Tile::Scalar* b, int64_t depth) {
  using Vector = typename Tile::Vector;
  constexpr int width = Tile::width;
  for (int64_t first = 0; first < depth; first += width, a += panel_stride) {
    const int64_t count = depth - first < width ? depth - first : width;
    for (int64_t k = 0; k < count; ++k, b += width) {
      const Vector b0 = *reinterpret_cast<const Vector*>(b);
      const Vector b1 = *reinterpret_cast<const Vector*>(b + Tile::lanes);
#pragma GCC unroll 12
      for (int row = 0; row < rows; ++row) {
        const Vector broadcast = a[row * width + k] - Vector{};
        acc[row][0] += broadcast * b0;
        acc[row][1] += broadcast * b1;
      }
    }
  }
}

// One term of a contrast: rows^T lanes, both panels [batch][width] of what two layers show.
template <class T>
struct Product {
  const T* rows;
  const T* lanes;
  T sign;
};

// out[row][lane] = keep * out[row][lane] + scale * sum_products sign * sum_batch rows[batch][row] * lanes[batch][lane]
//   out: row stride `stride`; only the first `valid` lanes are touched; with keep = 0 it is not read.
template <class Tile, int rows>
inline void outer_products(const Product<typename Tile::Scalar>* products, int count, int64_t batch,
                           typename Tile::Scalar keep, typename Tile::Scalar scale, typename Tile::Scalar* out,
                           int64_t stride, int64_t valid) {
  using T = typename Tile::Scalar;
  using Vector = typename Tile::Vector;
  using Unaligned = typename Tile::Unaligned;
  constexpr int width = Tile::width, lanes = Tile::lanes;
  Vector acc[rows][2] = {};
  for (int term = 0; term < count; ++term) {
    const T* left = products[term].rows;
    const T* right = products[term].lanes;
    const T sign = products[term].sign;
    for (int64_t sample = 0; sample < batch; ++sample, left += width, right += width) {
      const Vector r0 = *reinterpret_cast<const Vector*>(right) * sign;
      const Vector r1 = *reinterpret_cast<const Vector*>(right + lanes) * sign;
#pragma GCC unroll 8
      for (int row = 0; row < rows; ++row) {
        const Vector broadcast = left[row] - Vector{};
        acc[row][0] += broadcast * r0;
        acc[row][1] += broadcast * r1;
      }
    }
  }
  for (int row = 0; row < rows; ++row, out += stride) {
    if (valid == width) {
      Unaligned* to = reinterpret_cast<Unaligned*>(out);
      Unaligned* to1 = reinterpret_cast<Unaligned*>(out + lanes);
      *to = keep == T(0) ? acc[row][0] * scale : *to * keep + acc[row][0] * scale;
      *to1 = keep == T(0) ? acc[row][1] * scale : *to1 * keep + acc[row][1] * scale;
    } else {
      for (int64_t lane = 0; lane < valid; ++lane) {
        const T sum = scale * acc[row][lane / lanes][lane % lanes];
        out[lane] = keep == T(0) ? sum : keep * out[lane] + sum;
      }
    }
  }
}
