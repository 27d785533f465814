// How numbers come from torch's row-major matrices into panels, and back. Lanes past the last unit hold zeros.
#pragma once

#include <cstdint>

#include "tile.h"

namespace ceprop::CEPROP_SET {

inline int64_t panels_of(int64_t units, int width) { return (units + width - 1) / width; }

// How many units the panel that begins with unit `first` holds.
template <class Tile>
inline int64_t lanes_used(int64_t units, int64_t first) {
  return units - first < Tile::width ? units - first : Tile::width;
}

// Loads one panel of a [rows][units] matrix: panel[row][lane] = matrix[row][first + lane].
template <class Tile, class T>
inline void load_panel(const T* matrix, int64_t rows, int64_t units, int64_t first, T* panel) {
  const int64_t valid = lanes_used<Tile>(units, first);
  for (int64_t row = 0; row < rows; ++row, panel += Tile::width) {
    const T* from = matrix + row * units + first;
    for (int64_t lane = 0; lane < valid; ++lane) panel[lane] = from[lane];
    for (int64_t lane = valid; lane < Tile::width; ++lane) panel[lane] = T(0);
  }
}

template <class Tile, class T>
inline void store_panel(const T* panel, int64_t rows, int64_t units, int64_t first, T* matrix) {
  const int64_t valid = lanes_used<Tile>(units, first);
  for (int64_t row = 0; row < rows; ++row, panel += Tile::width) {
    T* to = matrix + row * units + first;
    for (int64_t lane = 0; lane < valid; ++lane) to[lane] = panel[lane];
  }
}

// Loads one panel of the transpose of `depth` columns of a matrix with rows of `stride`, a row per unit: panel[k][lane]
// = matrix[first + lane][k]. Squares that fit the registers go at once; what is left at the edge of `depth` goes one by
// one.
template <class Tile, class T>
inline void load_panel_transposed(const T* matrix, int64_t stride, int64_t depth, int64_t units, int64_t first,
                                  T* panel) {
  using Vector = typename Tile::Vector;
  constexpr int lanes = Tile::lanes;
  const int64_t valid = lanes_used<Tile>(units, first), whole = depth / lanes * lanes;
  for (int v = 0; v < 2; ++v) {
    const T* from = matrix + (first + v * lanes) * stride;
    T* to = panel + v * lanes;
    for (int64_t k = 0; k < whole; k += lanes) {
      Vector square[lanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < lanes; ++lane)
        square[lane] = v * lanes + lane < valid
                           ? Vector(*reinterpret_cast<const typename Tile::Unaligned*>(from + lane * stride + k))
                           : Vector{};
      transpose<Tile>(square);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) *reinterpret_cast<Vector*>(to + (k + i) * Tile::width) = square[i];
    }
    for (int64_t k = whole; k < depth; ++k)
      for (int lane = 0; lane < lanes; ++lane)
        to[k * Tile::width + lane] = v * lanes + lane < valid ? from[lane * stride + k] : T(0);
  }
}

// Stores it back.
template <class Tile, class T>
inline void store_panel_transposed(const T* panel, int64_t depth, int64_t units, int64_t first, T* matrix,
                                   int64_t stride) {
  using Vector = typename Tile::Vector;
  constexpr int lanes = Tile::lanes;
  const int64_t valid = lanes_used<Tile>(units, first), whole = depth / lanes * lanes;
  for (int v = 0; v < 2; ++v) {
    const T* from = panel + v * lanes;
    T* to = matrix + (first + v * lanes) * stride;
    for (int64_t k = 0; k < whole; k += lanes) {
      Vector square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) square[i] = *reinterpret_cast<const Vector*>(from + (k + i) * Tile::width);
      transpose<Tile>(square);
#pragma GCC unroll 16
      for (int lane = 0; lane < lanes; ++lane)
        if (v * lanes + lane < valid)
          *reinterpret_cast<typename Tile::Unaligned*>(to + lane * stride + k) = square[lane];
    }
    for (int64_t k = whole; k < depth; ++k)
      for (int64_t lane = 0; lane < lanes && v * lanes + lane < valid; ++lane)
        to[lane * stride + k] = from[k * Tile::width + lane];
  }
}

}  // namespace ceprop::CEPROP_SET
