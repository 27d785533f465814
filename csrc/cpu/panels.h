// Between torch's row-major matrices and panels. Lanes past the last unit hold zeros.
#pragma once

inline int64_t panels_of(int64_t units, int width) { return (units + width - 1) / width; }

// How many units the panel that begins with unit `first` holds.
template <class Tile>
inline int64_t lanes_used(int64_t units, int64_t first) {
  return units - first < Tile::width ? units - first : Tile::width;
}

// One panel of a [rows][units] matrix: panel[row][lane] = matrix[row][first + lane].
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

// One panel of the transpose of a [units][depth] matrix: panel[k][lane] = matrix[first + lane][k]. In blocks of
// `width` k, so that the lines of both sides stay in the first-level cache.
template <class Tile, class T>
inline void load_panel_transposed(const T* matrix, int64_t depth, int64_t units, int64_t first, T* panel) {
  constexpr int width = Tile::width;
  const int64_t valid = lanes_used<Tile>(units, first);
  for (int64_t k0 = 0; k0 < depth; k0 += width) {
    const int64_t k1 = k0 + width < depth ? k0 + width : depth;
    for (int64_t lane = 0; lane < width; ++lane) {
      const T* from = matrix + (first + lane) * depth;
      for (int64_t k = k0; k < k1; ++k) panel[k * width + lane] = lane < valid ? from[k] : T(0);
    }
  }
}

template <class Tile, class T>
inline void store_panel_transposed(const T* panel, int64_t depth, int64_t units, int64_t first, T* matrix) {
  constexpr int width = Tile::width;
  const int64_t valid = lanes_used<Tile>(units, first);
  for (int64_t k0 = 0; k0 < depth; k0 += width) {
    const int64_t k1 = k0 + width < depth ? k0 + width : depth;
    for (int64_t lane = 0; lane < valid; ++lane) {
      T* to = matrix + (first + lane) * depth;
      for (int64_t k = k0; k < k1; ++k) to[k] = panel[k * width + lane];
    }
  }
}
