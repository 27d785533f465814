// The way down a convolution: a block's own channels above bring something to all channels below. A lane has a channel
// below, a warp a patch of 4 x 4 positions, whose kernels reach a region of the map below. Most positions that a
// maximum was not picked from are zero: they are passed over.
#pragma once

#include "../block/mail.cuh"
#include "layout.h"

namespace ceprop::cuda::maps {

// Of one group of channels below. A patch's region comes to `regions`, [patch][row][column][lane]: parts add theirs one
// after another. All threads of the block call it.
template <class T, int Kernel>
__device__ __forceinline__ void way_down(const Memory& memory, const Joint& joint, int group, int regions) {
  constexpr int bytes = sizeof(T), taps = Kernel * Kernel, side = patch + Kernel - 1;
  const int lane = lane_of_thread(), parts = 1 << joint.down_shift;
  // Where there are several parts, a warp has one patch at most.
  const int items = joint.patches << joint.down_shift;
  for (int item = warp_of_thread(), again = 1; again;
       item += warps_of(sizeof(T)), again = joint.down_shift == 0 && item < items) {
    const int part = item & (parts - 1), at = item >> joint.down_shift;
    T sum[side * side] = {};
    if (item < items) {
      const int first = part * joint.of_down, end = min(first + joint.of_down, joint.own_channels);
      int weights = joint.weights + ((group * joint.own_channels + first) * taps * of_lanes + lane) * bytes;
      int values = joint.spread + (at * joint.own_channels + first) * patch * patch * bytes;
      const int of_lane = lane % (patch * patch) * bytes;
      T next = memory.get<T>(values + of_lane);
#pragma unroll 1
      for (int c = first; c < end; ++c, weights += taps * of_lanes * bytes) {
        const T own = next;
        values += patch * patch * bytes;
        if (c + 1 < end) next = memory.get<T>(values + of_lane);
        T weight[taps];
#pragma unroll
        for (int i = 0; i < taps; ++i) weight[i] = memory.get<T>(weights + i * of_lanes * bytes);
        // The whole warp passes over a position or none of it does.
        const unsigned there = __ballot_sync(0xffffffffu, own != T(0));
#pragma unroll
        for (int i = 0; i < patch * patch; ++i) {
          if (!(there >> i & 1)) continue;
          const T value = __shfl_sync(0xffffffffu, own, i);
#pragma unroll
          for (int k = 0; k < taps; ++k)
            sum[(i / patch + k / Kernel) * side + i % patch + k % Kernel] += weight[k] * value;
        }
      }
    }
    const int to = regions + (at * side * side * lanes + lane) * bytes;
    for (int turn = 0; turn < parts; ++turn) {
      if (turn > 0) __syncthreads();
      if (item >= items || part != turn) continue;
#pragma unroll
      for (int i = 0; i < side * side; ++i) {
        const int place = to + i * lanes * bytes;
        memory.put(place, turn == 0 ? sum[i] : memory.get<T>(place) + sum[i]);
      }
    }
  }
}

struct Patches {
  int rows, columns;
};

// What the regions bring to `pack` numbers of the lane's channel, from row `from_y`, column `from_x` of the map with
// its margin on. If `Aligned`, a patch begins at none of them but the first.
template <class T, int Kernel, bool Aligned>
__device__ __forceinline__ Pack<T> sum_of_regions(const Memory& memory, const Patches& patches, int regions,
                                                  unsigned from_y, unsigned from_x) {
  constexpr int bytes = sizeof(T), pack = Pack<T>::size, side = patch + Kernel - 1;
  Pack<T> sum{};
  // At most two rows of patches, and two columns, reach a number.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = static_cast<int>(from_y / patch) - i, in_y = static_cast<int>(from_y % patch) + i * patch;
    if (row < 0 || row >= patches.rows || in_y >= side) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < pack; ++k) {
        const unsigned x = Aligned ? from_x : from_x + k;
        const int column = static_cast<int>(x / patch) - j;
        const int in_x = (Aligned && pack == patch ? 0 : static_cast<int>(x % patch)) + (Aligned ? k : 0) + j * patch;
        if (column < 0 || column >= patches.columns || in_x >= side) continue;
        const int region = (row * patches.columns + column) * side * side + in_y * side + in_x;
        sum.v[k] += memory.get<T>(regions + region * lanes * bytes);
      }
  }
  return sum;
}

// send(x, y, pack) for every 16 bytes of the map below, shared among the warps: what the regions bring there to the
// lane's channel.
template <class T, int Kernel, class Send>
__device__ __forceinline__ void gather_regions(const Memory& memory, const Joint& joint, const Layer& below,
                                               int regions, const Send& send) {
  constexpr int pack = Pack<T>::size;
  const int of_lane = regions + lane_of_thread() * static_cast<int>(sizeof(T));
  const int packs = below.packs_of_row(pack), height = below.height, margin = below.margin;
  const Patches patches{(joint.height + patch - 1) / patch, joint.patch_columns};
  for (int y = 0, column = warp_of_thread();; column += warps_of(sizeof(T))) {
    for (; column >= packs; column -= packs) ++y;
    if (y >= height) break;
    const unsigned from_y = y + margin, from_x = column * pack + margin;
    if (margin % pack == 0)
      send(column * pack, y, sum_of_regions<T, Kernel, true>(memory, patches, of_lane, from_y, from_x));
    else
      send(column * pack, y, sum_of_regions<T, Kernel, false>(memory, patches, of_lane, from_y, from_x));
  }
}

}  // namespace ceprop::cuda::maps
