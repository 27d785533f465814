// What is done with the numbers of one sample's map: they come from torch's order and go back, and rho is taken of
// them.
#pragma once

#include <cstring>

#include "../units.h"
#include "maps.h"

namespace ceprop::CEPROP_SET::conv {

// Calls body(first place, its offset, how many numbers follow) for every stretch that lies together within the border.
template <class Body>
inline void for_each_stretch(const Map& of, const Body& body) {
  if (of.border[0] == 0 && of.border[1] == 0) return body(0, 0, of.size());
  for (int64_t y = 0; y < of.height; ++y) body(y * of.width, of.at(y, 0), of.width * of.stride);
}

// Zeroes the lanes past the last channel.
template <class T>
inline void clear_padding(const Map& of, T* sample) {
  if (of.stride == of.channels) return;
  for (int64_t y = 0; y < of.height; ++y)
    for (int64_t x = 0; x < of.width; ++x)
      std::memset(sample + of.at(y, x) + of.channels, 0, (of.stride - of.channels) * sizeof(T));
}

template <class T>
inline void activate(const Map& of, Activation activation, const T* from, T* to) {
  for_each_stretch(
      of, [&](int64_t, int64_t at, int64_t count) { apply_activation(activation, from + at, to + at, count); });
  clear_padding(of, to);
}

// These bring one sample of [batch, channels, height, width] into the maps of the batch, and back.
template <class T>
inline void load_map(const Map& of, const T* from, int64_t sample, T* maps) {
  from += sample * of.channels * of.places();
  for (int64_t y = 0; y < of.height; ++y)
    for (int64_t x = 0; x < of.width; ++x)
      for (int64_t c = 0; c < of.channels; ++c)
        maps[sample * of.size() + of.at(y, x) + c] = from[(c * of.height + y) * of.width + x];
}
template <class T>
inline void store_map(const Map& of, const T* maps, int64_t sample, T* to) {
  to += sample * of.channels * of.places();
  for (int64_t c = 0; c < of.channels; ++c)
    for (int64_t y = 0; y < of.height; ++y)
      for (int64_t x = 0; x < of.width; ++x)
        to[(c * of.height + y) * of.width + x] = maps[sample * of.size() + of.at(y, x) + c];
}

}  // namespace ceprop::CEPROP_SET::conv
