// Convolutions consist of these three products, on tiles that stay in registers.
#pragma once

#include <cstdint>

#include "../tile.h"

namespace ceprop::CEPROP_SET::conv {

// Rows of the way up have a pointer each: the address registers hold so many beside the others.
template <class Tile>
inline constexpr int max_positions = Tile::max_rows < 8 ? Tile::max_rows : 8;

// The way down keeps so many vectors: as there are registers, but those of a weight and a broadcast.
template <class Tile>
inline constexpr int max_patch = Tile::max_rows == 12 ? 25 : 12;

// A part of the sums over a receptive field, which is `runs` rows of numbers that follow each other. The weights of a
// chunk stay in the first-level cache, where all positions find them.
struct Chunk {
  int64_t runs, length;
  int64_t from;   // offset in the map below
  int64_t depth;  // how many products come before
};

// Computes sums[row][lane] = start[row][lane] + sum_run sum_k map[where[row] + run * run_stride + k] b[run][k][lane],
// for the lanes of the first `vectors` vectors
//   sums: [rows][width], may be where they start
//   where: offsets of the rows' receptive fields in the map, where the chunk begins at chunk.from
//   b: [runs][length][width]
template <class Tile, int rows, int vectors>
inline void gather(typename Tile::Scalar* sums, const Start<typename Tile::Scalar>& start,
                   const typename Tile::Scalar* map, const int64_t* where, const typename Tile::Scalar* b,
                   const Chunk& chunk, int64_t run_stride) {
  using Vector = typename Tile::Vector;
  constexpr int width = Tile::width, lanes = Tile::lanes;
  Vector sum[rows][vectors] = {};
  const typename Tile::Scalar* from[rows];
  for (int row = 0; row < rows; ++row) from[row] = map + where[row] + chunk.from;
  for (int64_t run = 0; run < chunk.runs; ++run) {
    for (int64_t k = 0; k < chunk.length; ++k, b += width) {
      Vector weights[vectors];
      for (int v = 0; v < vectors; ++v) weights[v] = *reinterpret_cast<const Vector*>(b + v * lanes);
#pragma GCC unroll 8
      for (int row = 0; row < rows; ++row) {
        const Vector broadcast = from[row][k] - Vector{};
        for (int v = 0; v < vectors; ++v) sum[row][v] += broadcast * weights[v];
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) from[row] += run_stride;
  }
  const typename Tile::Scalar* first = start.rows;
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row, sums += width, first += start.stride)
    for (int v = 0; v < vectors; ++v)
      *reinterpret_cast<Vector*>(sums + v * lanes) = *reinterpret_cast<const Vector*>(first + v * lanes) + sum[row][v];
}

// A unit that is not zero has an entry: what it shows, and its channel in the slice.
template <class T>
struct Entry {
  T value;
  int32_t channel;
};

// Adds to[at[n]] += sum_entries value * weights[channel][n], n < vectors, for every position and its list of entries
//   starts: where the lists begin among the entries, and the last ends; positions share lists in groups of `sharing`
//   to: the column's map; cells: of each position
template <class Tile, int vectors>
inline void scatter(const Entry<typename Tile::Scalar>* entries, const int32_t* starts, int64_t positions,
                    int64_t sharing, const typename Tile::Scalar* weights, const int64_t* cells, int64_t cell_size,
                    const int64_t* at, typename Tile::Scalar* to) {
  using Vector = typename Tile::Vector;
  for (int64_t position = 0; position < positions; ++position) {
    const int64_t list = sharing == 1 ? position : position / sharing;
    const Entry<typename Tile::Scalar>*entry = entries + starts[list], *end = entries + starts[list + 1];
    if (entry == end) continue;
    typename Tile::Scalar* out = to + cells[position] * cell_size;
    Vector sum[vectors];
#pragma GCC unroll 25
    for (int n = 0; n < vectors; ++n) sum[n] = *reinterpret_cast<const Vector*>(out + at[n]);
    for (; entry < end; ++entry) {
      const Vector broadcast = entry->value - Vector{};
      const typename Tile::Scalar* w = weights + entry->channel * (vectors * Tile::lanes);
#pragma GCC unroll 25
      for (int n = 0; n < vectors; ++n) sum[n] += broadcast * *reinterpret_cast<const Vector*>(w + n * Tile::lanes);
    }
#pragma GCC unroll 25
    for (int n = 0; n < vectors; ++n) *reinterpret_cast<Vector*>(out + at[n]) = sum[n];
  }
}

// Sums up sums[row][lane] (+)= sum_positions m[position][row] map[where[position] + lane], for the first `valid` lanes
template <class Tile, int rows, int vectors>
inline void correlate(typename Tile::Scalar* sums, int64_t stride, bool fresh, const typename Tile::Scalar* m,
                      const typename Tile::Scalar* map, const int64_t* where, int64_t positions, int64_t valid) {
  using Vector = typename Tile::Vector;
  using Unaligned = typename Tile::Unaligned;
  constexpr int lanes = Tile::lanes;
  Vector sum[rows][vectors] = {};
  for (int64_t position = 0; position < positions; ++position, m += rows) {
    const typename Tile::Scalar* from = map + where[position];
    Vector right[vectors];
    for (int v = 0; v < vectors; ++v) right[v] = *reinterpret_cast<const Unaligned*>(from + v * lanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const Vector broadcast = m[row] - Vector{};
      for (int v = 0; v < vectors; ++v) sum[row][v] += broadcast * right[v];
    }
  }
  for (int row = 0; row < rows; ++row, sums += stride)
    for (int64_t lane = 0; lane < valid; ++lane) {
      const typename Tile::Scalar value = sum[row][lane / lanes][lane % lanes];
      sums[lane] = fresh ? value : sums[lane] + value;
    }
}

}  // namespace ceprop::CEPROP_SET::conv
