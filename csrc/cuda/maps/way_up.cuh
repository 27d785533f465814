// The way up a convolution: sums of a block's own channels above, of a part of the channels below. A lane has a tile of
// four channels and eight neighbouring positions: the numbers of a row serve all taps and channels.
#pragma once

#include "../block/mail.cuh"
#include "layout.h"

namespace ceprop::cuda::maps {

// `states`: place of what is below. The sums of every part come to joint scratch at `map`.
template <class T, int Kernel>
__device__ __forceinline__ void way_up(const Memory& memory, const Joint& joint, const Layer& below, int states,
                                       int map) {
  constexpr int bytes = sizeof(T), pack = Pack<T>::size, read = tile_positions + Kernel - 1;
  constexpr int packs = (read + pack - 1) / pack, taps = Kernel * Kernel, channel = taps * of_lanes * bytes;
  const int lane = lane_of_thread(), of_group = joint.own_channels * channel;
  for (int item = warp_of_thread(); item < joint.tile_sets << joint.up_shift; item += warps_of(sizeof(T))) {
    const int part = item & ((1 << joint.up_shift) - 1);
    const auto tile = memory.get<Words>(joint.tiles + ((item >> joint.up_shift) * lanes + lane) * 16);
    const int first = part * joint.of_up, end = min(first + joint.of_up, below.channels);
    T sum[tile_channels][tile_positions] = {};
    int from = states + (first * below.channel + tile.v[0]) * bytes;
#pragma unroll 1
    for (int c = first; c < end; ++c, from += below.channel * bytes) {
      int row = from, weights = joint.weights + (c / lanes) * of_group + (c % lanes) * bytes + tile.v[1] * channel;
#pragma unroll 1
      for (int y = 0; y < Kernel; ++y, row += below.row * bytes, weights += Kernel * of_lanes * bytes) {
        T state[packs * pack];
#pragma unroll
        for (int i = 0; i < packs; ++i) {
          const auto some = memory.get<Pack<T>>(row + i * 16);
#pragma unroll
          for (int j = 0; j < pack; ++j) state[i * pack + j] = some.v[j];
        }
#pragma unroll
        for (int x = 0; x < Kernel; ++x)
#pragma unroll
          for (int j = 0; j < tile_channels; ++j) {
            const auto weight = memory.get<T>(weights + j * channel + x * of_lanes * bytes);
#pragma unroll
            for (int i = 0; i < tile_positions; ++i) sum[j][i] += weight * state[i + x];
          }
      }
    }
    if (tile.v[3] == 0) continue;  // it stands for none
    const int of_channel = joint.height * joint.map_row;
    const int to = map + (part * joint.map + tile.v[2]) * bytes;
#pragma unroll
    for (int j = 0; j < tile_channels; ++j)
#pragma unroll
      for (int i = 0; i < tile_positions / pack; ++i) {
        Pack<T> some;
#pragma unroll
        for (int k = 0; k < pack; ++k) some.v[k] = sum[j][i * pack + k];
        memory.put(to + (j * of_channel + i * pack) * bytes, some);
      }
  }
}

// Writes where the tiles of lanes begin: among the states of a channel, the first channel of weights, among the sums;
// and whether there is one.
__device__ __forceinline__ void write_tiles(const Memory& memory, const Joint& joint, const Layer& below) {
  const int segments = joint.segments, of_channels = joint.height * segments;
  const int count = joint.own_channels / tile_channels * of_channels;
  for (int i = static_cast<int>(threadIdx.x); i < joint.tile_sets * lanes; i += static_cast<int>(blockDim.x)) {
    // Neighbouring lanes have neighbouring rows, which lie in different banks.
    const int tile = i < count ? i : 0, y = tile % joint.height, rest = tile / joint.height;
    const int x = rest % segments * tile_positions, channel = rest / segments * tile_channels;
    memory.put(joint.tiles + i * 16,
               Words{{y * below.row + x, channel, (channel * joint.height + y) * joint.map_row + x, i < count}});
  }
}

}  // namespace ceprop::cuda::maps
