// How the weights of one connection lie: as a matrix, and packed for the ways up and down.
#pragma once

#include <cstring>

#include "../memory.h"
#include "../panels.h"
#include "maps.h"

namespace ceprop::CEPROP_SET::conv {

template <class Tile>
class Weights {
 public:
  using T = typename Tile::Scalar;

  Weights() = default;
  // given: [channels above, channels below, kernel], or null where there are no weights.
  Weights(const Link<Tile>& link, T* given, bool up, bool down)
      : given_(given),
        matrix_(given ? link.down_size() : 0),
        up_(up ? link.panels * Tile::width * link.depth : 0),
        down_(down ? link.down_size() : 0),
        goes_up_(up),
        goes_down_(down) {}

  T* row(const Link<Tile>& link, int64_t channel) const { return matrix_.get() + channel * link.depth; }
  const T* up() const { return up_.get(); }
  const T* down() const { return down_.get(); }

  // These bring some channels above from the parameter, and back.
  void load(const Link<Tile>& link, const Range& channels) const {
    const int64_t taps = link.convolution.kernel[0] * link.convolution.kernel[1], count = link.below.channels;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      T* to = row(link, c);
      std::memset(to, 0, link.depth * sizeof(T));
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < count; ++i) to[tap * link.below.stride + i] = given_[(c * count + i) * taps + tap];
    }
  }
  void store(const Link<Tile>& link, const Range& channels) const {
    for (int64_t c = channels.begin; c < channels.end; ++c)
      blend_channel(link, c, row(link, c), Blend<T>{0, 1, true}, given_);
  }

  // Blends one channel of a parameter, or of its gradient, with numbers that lie like a row.
  static void blend_channel(const Link<Tile>& link, int64_t c, const T* from, const Blend<T>& blend, T* parameter) {
    const int64_t taps = link.convolution.kernel[0] * link.convolution.kernel[1], count = link.below.channels;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t tap = 0; tap < taps; ++tap) {
        T& to = parameter[(c * count + i) * taps + tap];
        to = blend(to, from[tap * link.below.stride + i]);
      }
  }

  // Packs this worker's part from the matrix.
  void pack(const Link<Tile>& link, const Worker& worker) const {
    if (goes_up_) {
      const Range panels = worker.share(link.panels);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        load_panel_transposed<Tile>(matrix_.get(), link.depth, link.depth, link.above.channels, panel * Tile::width,
                                    up_.get() + panel * link.depth * Tile::width);
    }
    if (!goes_down_) return;
    const Range channels = worker.share(link.above.channels);
    for (const Column& column : link.columns)
      for (const Patch& patch : column.patches)
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          T* to = down_.get() + patch.weights + c * patch.vectors * Tile::lanes;
          for (int n = 0; n < patch.vectors; ++n)
            std::memcpy(to + n * Tile::lanes, row(link, c) + patch.from[n], Tile::lanes * sizeof(T));
        }
  }

 private:
  T* given_ = nullptr;
  Buffer<T> matrix_;  // [channels above][depth]
  Buffer<T> up_;      // [panel][depth][width]
  Buffer<T> down_;    // [column][patch][channels above][vectors]
  bool goes_up_ = false, goes_down_ = false;
};

}  // namespace ceprop::CEPROP_SET::conv
