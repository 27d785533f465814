// Where the numbers of a chain of convolutions lie. Every connection is a convolution here: a dense one above a map has
// a kernel that covers the map, one between dense layers is 1 x 1 on maps of one place.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../../model/network.h"
#include "../panels.h"
#include "tile.h"

namespace ceprop::CEPROP_SET::conv {

// How the map of one sample lies, channels last: [height + 2 border][width + 2 border][stride]. The border is what the
// convolution above pads with. It holds zeros, as do the lanes past the last channel.
struct Map {
  int64_t channels, height, width;
  int64_t stride;  // numbers of a place
  int64_t border[2];

  int64_t row() const { return (width + 2 * border[1]) * stride; }
  int64_t size() const { return (height + 2 * border[0]) * row(); }
  int64_t at(int64_t y, int64_t x) const { return (border[0] + y) * row() + (border[1] + x) * stride; }
  int64_t places() const { return height * width; }
};

// These vectors of a receptive field the way down keeps in registers: some of a column's at some places of the kernel.
struct Patch {
  int vectors;
  int64_t weights;          // where its weights begin: [channel above][vectors]
  std::vector<int64_t> at;  // where each vector lies in the column's map below, from the receptive field's first place
  std::vector<int64_t> from;  // where it lies in a channel's weights
};

// The way down sums up the drive of these channels of the map below at once, in [places with border][vectors].
struct Column {
  int64_t first;  // vector
  int64_t vectors;
  std::vector<Patch> patches;
};

// How one connection leads from map to map. Positions are those of the kernel, window of the pooling by window, row by
// row in each.
template <class Tile>
struct Link {
  static constexpr int64_t products_per_chunk = 160, bytes_per_slice = 40 << 10;

  Map below, above;
  Convolution convolution;
  int64_t positions, panels;
  int64_t run, depth;          // numbers of a row of the receptive field, and of all of it
  std::vector<int64_t> cells;  // place of `below`, with border, where the receptive field of a position begins
  std::vector<int64_t> where;  // the same as offsets, in the maps of `together` samples
  std::vector<Chunk> chunks;
  std::vector<Column> columns;  // the way down
  int64_t slice;                // channels above whose weights in a patch stay in the first-level cache

  Link(const Map& below_, const Map& above_, const Convolution& convolution_)
      : below(below_), above(above_), convolution(convolution_) {
    positions = above.places() * convolution.places();
    panels = panels_of(above.channels, Tile::width);
    run = convolution.kernel[1] * below.stride;
    depth = convolution.kernel[0] * run;
    const int64_t row = below.width + 2 * below.border[1];
    for (int64_t y = 0; y < above.height; ++y)
      for (int64_t x = 0; x < above.width; ++x)
        for (int64_t i = 0; i < convolution.places(); ++i) {
          const int64_t conv_y = y * convolution.window[0] + i / convolution.window[1];
          const int64_t conv_x = x * convolution.window[1] + i % convolution.window[1];
          cells.push_back(conv_y * convolution.stride[0] * row + conv_x * convolution.stride[1]);
        }
    make_chunks();
    make_columns();
  }

  void note_positions(int64_t together) {
    for (int64_t sample = 0; sample < together; ++sample)
      for (const int64_t cell : cells) where.push_back(sample * below.size() + cell * below.stride);
  }

  bool picks_maxima() const { return convolution.pool == Pool::max; }
  int64_t cells_below() const { return below.size() / below.stride; }
  int64_t slices() const { return (above.channels + slice - 1) / slice; }
  int64_t down_size() const { return above.channels * depth; }

 private:
  void make_chunks() {
    if (run <= products_per_chunk) {
      const int64_t together = std::max<int64_t>(1, products_per_chunk / run);
      for (int64_t y = 0; y < convolution.kernel[0]; y += together)
        chunks.push_back({std::min(together, convolution.kernel[0] - y), run, y * below.row(), y * run});
      return;
    }
    const int64_t pieces = (run + products_per_chunk - 1) / products_per_chunk;
    for (int64_t y = 0; y < convolution.kernel[0]; ++y)
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t begin = run * i / pieces, end = run * (i + 1) / pieces;
        chunks.push_back({1, end - begin, y * below.row() + begin, y * run + begin});
      }
  }

  // Sums of eight vectors keep the multipliers busy; more would leave less room for weights.
  void make_columns() {
    constexpr int64_t enough = 8, most = max_patch<Tile>;
    const int64_t vectors = below.stride / Tile::lanes, taps = convolution.kernel[0] * convolution.kernel[1];
    const int64_t row = below.width + 2 * below.border[1];
    const int64_t wanted = std::max<int64_t>(1, (enough + taps - 1) / taps);
    const int64_t count = (vectors + wanted - 1) / wanted;
    int64_t widest = 1, weights = 0;
    for (int64_t i = 0; i < count; ++i) {
      Column column{vectors * i / count, vectors * (i + 1) / count - vectors * i / count, {}};
      const int64_t all = taps * column.vectors, patches = (all + most - 1) / most;
      for (int64_t p = 0; p < patches; ++p) {
        const int64_t begin = all * p / patches, end = all * (p + 1) / patches;
        Patch patch{static_cast<int>(end - begin), weights, {}, {}};
        for (int64_t n = begin; n < end; ++n) {
          const int64_t tap = n / column.vectors, vector = n % column.vectors;
          const int64_t cell = tap / convolution.kernel[1] * row + tap % convolution.kernel[1];
          patch.at.push_back((cell * column.vectors + vector) * Tile::lanes);
          patch.from.push_back(tap * below.stride + (column.first + vector) * Tile::lanes);
        }
        weights += patch.vectors * Tile::lanes * above.channels;
        widest = std::max<int64_t>(widest, patch.vectors);
        column.patches.push_back(std::move(patch));
      }
      columns.push_back(std::move(column));
    }
    slice = std::max<int64_t>(
        1, bytes_per_slice / (widest * Tile::lanes * static_cast<int64_t>(sizeof(typename Tile::Scalar))));
    slice = (above.channels + slices() - 1) / slices();
  }
};

}  // namespace ceprop::CEPROP_SET::conv
