// How a few samples pass through one connection, up and down.
#pragma once

#include <algorithm>
#include <cstring>

#include "../memory.h"
#include "maps.h"

namespace ceprop::CEPROP_SET::conv {

// Computes pool(conv2d(below, W) + bias), and which place of its window each maximum comes from, the first of equal
// ones.
//   weights: [panel][depth][width]; bias: [panel][width]; below: maps of the samples
//   sums: working memory, [samples][positions][width]
//   drive: null or [samples][places above][stride above]; places: null or likewise
template <class Tile>
inline void go_up(const Link<Tile>& link, const typename Tile::Scalar* weights, const typename Tile::Scalar* bias,
                  const typename Tile::Scalar* below, int64_t samples, typename Tile::Scalar* sums,
                  typename Tile::Scalar* drive, uint16_t* places) {
  using T = typename Tile::Scalar;
  constexpr int most = max_positions<Tile>;
  const int64_t positions = samples * link.positions, tiles = (positions + most - 1) / most;
  for (int64_t panel = 0; panel < link.panels; ++panel) {
    const bool narrow = lanes_used<Tile>(link.above.channels, panel * Tile::width) <= Tile::lanes;
    Start<T> start{bias + panel * Tile::width, 0};
    for (const Chunk& chunk : link.chunks) {
      const T* b = weights + (panel * link.depth + chunk.depth) * Tile::width;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = positions * tile / tiles, end = positions * (tile + 1) / tiles;
        with_constant_rows<most>(end - first, [&]<int rows>() {
          const Start<T> from{start.rows + first * start.stride, start.stride};
          T* to = sums + first * Tile::width;
          if (narrow)
            gather<Tile, rows, 1>(to, from, below, link.where.data() + first, b, chunk, link.below.row());
          else
            gather<Tile, rows, 2>(to, from, below, link.where.data() + first, b, chunk, link.below.row());
        });
      }
      start = {sums, Tile::width};
    }
    const int64_t first = panel * Tile::width, lanes = link.above.stride - first;
    for (int v = 0; v < (narrow ? 1 : 2) && v * Tile::lanes < lanes; ++v)
      pool<Tile>(link, sums + v * Tile::lanes, samples * link.above.places(),
                 drive ? drive + first + v * Tile::lanes : nullptr,
                 places ? places + first + v * Tile::lanes : nullptr);
  }
}

// Pools one vector of channels of all windows. A NaN counts as the maximum.
template <class Tile>
inline void pool(const Link<Tile>& link, const typename Tile::Scalar* sums, int64_t windows,
                 typename Tile::Scalar* drive, uint16_t* places) {
  using T = typename Tile::Scalar;
  using Vector = typename Tile::Vector;
  using Numbers = decltype(Vector{} > Vector{});
  typedef uint16_t Places __attribute__((vector_size(Tile::lanes * sizeof(uint16_t)), aligned(2), may_alias));
  const int64_t count = link.convolution.places(), stride = link.above.stride;
  for (int64_t window = 0; window < windows; ++window, sums += count * Tile::width) {
    Vector result = *reinterpret_cast<const Vector*>(sums);
    if (link.convolution.pool == Pool::max) {
      Numbers best{};
      for (int64_t place = 1; place < count; ++place) {
        const Vector value = *reinterpret_cast<const Vector*>(sums + place * Tile::width);
        const Numbers larger = (value > result) | (value != value);
        result = larger ? value : result;
        best = larger ? Numbers{} + static_cast<decltype(best[0] + 0)>(place) : best;
      }
      if (places) *reinterpret_cast<Places*>(places + window * stride) = __builtin_convertvector(best, Places);
    } else if (count > 1) {
      for (int64_t place = 1; place < count; ++place)
        result += *reinterpret_cast<const Vector*>(sums + place * Tile::width);
      result /= Vector{} + static_cast<T>(count);
    }
    if (drive) *reinterpret_cast<Vector*>(drive + window * stride) = result;
  }
}

// Lists the units above a connection that are not zero, by the position that each is unpooled to. Zeros, which
// saturated units are, so cost nothing on the way down. (A zero above an infinite weight brings nothing, where 0 * inf
// would be NaN; NaN is no zero.)
template <class Tile>
class Lists {
 public:
  using T = typename Tile::Scalar;

  void make_room(const Link<Tile>& link, int64_t samples) {
    room_ = std::max(room_, samples * link.above.places() * link.above.channels);
    starts_room_ = std::max(starts_room_, samples * link.slices() * (lists(link) + 1));
    most_places_ = std::max(most_places_, link.convolution.places());
  }
  void allocate() {
    entries_ = Buffer<Entry<T>>(room_ + 1);
    starts_ = Buffer<int32_t>(starts_room_);
    cursors_ = Buffer<int32_t>(most_places_);
  }

  // above: maps of the samples; places: [samples][places above][stride above], where the pooling picks maxima
  void fill(const Link<Tile>& link, const T* above, const uint16_t* places, int64_t samples) {
    const Map& map = link.above;
    const T share = link.convolution.pool == Pool::avg ? T(1) / static_cast<T>(link.convolution.places()) : T(1);
    for (int64_t sample = 0; sample < samples; ++sample)
      for (int64_t slice = 0; slice < link.slices(); ++slice) {
        const int64_t first = slice * link.slice, end = std::min(first + link.slice, map.channels);
        Entry<T>* entries = entries_.get() + (sample * map.channels + first) * map.places();
        int32_t* starts = starts_.get() + (sample * link.slices() + slice) * (lists(link) + 1);
        int32_t count = 0;
        for (int64_t window = 0; window < map.places(); ++window) {
          const T* units = above + sample * map.size() + map.at(window / map.width, window % map.width);
          if (link.picks_maxima()) {
            const uint16_t* of = places + (sample * map.places() + window) * map.stride;
            count = sort(units, of, first, end, link.convolution.places(), entries, count,
                         starts + window * link.convolution.places());
          } else {
            starts[window] = count;
            for (int64_t c = first; c < end; ++c) {
              entries[count] = {units[c] * share, static_cast<int32_t>(c - first)};
              count += units[c] != 0;
            }
          }
        }
        starts[lists(link)] = count;
      }
  }

  const Entry<T>* entries(const Link<Tile>& link, int64_t sample, int64_t slice) const {
    return entries_.get() + (sample * link.above.channels + slice * link.slice) * link.above.places();
  }
  const int32_t* starts(const Link<Tile>& link, int64_t sample, int64_t slice) const {
    return starts_.get() + (sample * link.slices() + slice) * (lists(link) + 1);
  }

 private:
  static int64_t lists(const Link<Tile>& link) { return link.picks_maxima() ? link.positions : link.above.places(); }

  // Adds the units of one window after the first `count` entries, by their places; returns how many there are then.
  int32_t sort(const T* units, const uint16_t* places, int64_t first, int64_t end, int64_t window, Entry<T>* entries,
               int32_t count, int32_t* starts) {
    int32_t* cursors = cursors_.get();
    for (int64_t place = 0; place < window; ++place) cursors[place] = 0;
    for (int64_t c = first; c < end; ++c) cursors[places[c]] += units[c] != 0;
    for (int64_t place = 0; place < window; ++place) {
      starts[place] = count;
      count += cursors[place];
      cursors[place] = starts[place];
    }
    // Which units are zero cannot be foreseen: so there is no branch, and zeros go to a place of their own.
    Entry<T>* of_zeros = entries_.get() + room_;
    for (int64_t c = first; c < end; ++c) {
      const bool counts = units[c] != 0;
      int32_t& cursor = cursors[places[c]];
      Entry<T>* to = counts ? entries + cursor : of_zeros;
      *to = {units[c], static_cast<int32_t>(c - first)};
      cursor += counts;
    }
    return count;
  }

  int64_t room_ = 0, starts_room_ = 0, most_places_ = 0;
  Buffer<Entry<T>> entries_;  // [sample][channel, in slices][place], as many as there are; then one of zeros
  Buffer<int32_t> starts_;    // [sample][slice][list + 1]
  Buffer<int32_t> cursors_;
};

// Computes total = drive + conv_transpose2d(unpool(above), W), with the units above in lists.
//   weights: as the patches say; scratch: working memory, [samples][places below with border][vectors of a column]
//   drive, total: [samples][places below][stride below]
template <class Tile>
inline void go_down(const Link<Tile>& link, const typename Tile::Scalar* weights, const Lists<Tile>& lists,
                    int64_t samples, typename Tile::Scalar* scratch, const typename Tile::Scalar* drive,
                    typename Tile::Scalar* total) {
  using T = typename Tile::Scalar;
  const Map& below = link.below;
  const int64_t sharing = link.picks_maxima() ? 1 : link.convolution.places();
  for (const Column& column : link.columns) {
    const int64_t cell = column.vectors * Tile::lanes, size = link.cells_below() * cell;
    std::memset(scratch, 0, samples * size * sizeof(T));
    for (int64_t slice = 0; slice < link.slices(); ++slice)
      for (const Patch& patch : column.patches)
        with_constant_rows<max_patch<Tile>>(patch.vectors, [&]<int vectors>() {
          const T* w = weights + patch.weights + slice * link.slice * vectors * Tile::lanes;
          for (int64_t sample = 0; sample < samples; ++sample)
            scatter<Tile, vectors>(lists.entries(link, sample, slice), lists.starts(link, sample, slice),
                                   link.positions, sharing, w, link.cells.data(), cell, patch.at.data(),
                                   scratch + sample * size);
        });
    const int64_t row = below.row() / below.stride;
    for (int64_t sample = 0; sample < samples; ++sample)
      for (int64_t y = 0; y < below.height; ++y) {
        const T* from = scratch + sample * size + ((below.border[0] + y) * row + below.border[1]) * cell;
        const int64_t at = (sample * below.places() + y * below.width) * below.stride + column.first * Tile::lanes;
        for (int64_t x = 0; x < below.width; ++x)
          for (int64_t lane = 0; lane < cell; ++lane)
            total[at + x * below.stride + lane] = drive[at + x * below.stride + lane] + from[x * cell + lane];
      }
  }
}

}  // namespace ceprop::CEPROP_SET::conv
