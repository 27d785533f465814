// The tables by which products find their numbers, filled in once a call.
#pragma once

#include "../device.h"
#include "problem.h"

namespace ceprop::cuda::conv {

// A dense connection is applied from below to all units of the map there, as if they were channels of one pixel: its
// kernel fits in one position only.
__device__ __forceinline__ int view_pixels(const Link& link) { return link.dense ? link.pixels_below : 1; }

// A connection's weights see this map above them: [channels][batch][positions], the windows side by side.
__device__ __forceinline__ int spread_height(const Link& link) { return link.height * link.window_y; }
__device__ __forceinline__ int spread_width(const Link& link) { return link.width * link.window_x; }

template <class T>
class Tables {
 public:
  __device__ explicit Tables(const Problem<T>& problem) : p_(problem) {}

  // Fills in the tables, by all blocks. No barrier.
  __device__ void fill() const {
    for (int c = 0; c < p_.layers + p_.readout; ++c) {
      const Link& link = p_.links[c];
      fill(p_.workspace.taps[c], link.depth, [&](int k) { return tap(link, k); });
      fill(p_.workspace.positions[c], p_.batch * link.positions, [&](int j) { return position(link, j); });
      if (c == 0) continue;
      fill(p_.workspace.taps_down[c], link.channels * (link.dense ? 1 : link.taps),
           [&](int k) { return tap_down(link, k); });
      fill(p_.workspace.cells[c], p_.batch * (link.dense ? 1 : link.pixels_below),
           [&](int i) { return cell(link, i); });
    }
  }

 private:
  template <class Of>
  __device__ void fill(Spot* table, int count, const Of& of) const {
    for (int i = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x); i < count;
         i += p_.layout.blocks * block_threads)
      table[i] = of(i);
  }

  __device__ Spot tap(const Link& link, int k) const {
    const int of_kernel = k % link.taps;
    return {k / link.taps * p_.batch * link.pixels_below, k, of_kernel / link.kernel_width,
            of_kernel % link.kernel_width};
  }
  // `left`: of the position in an unpooled map.
  __device__ Spot position(const Link& link, int j) const {
    const int place = j % link.window, unit = j / link.window % link.pixels, sample = j / link.positions;
    const int y = unit / link.width * link.window_y + place / link.window_x;
    const int x = unit % link.width * link.window_x + place % link.window_x;
    return {sample * link.pixels_below, sample * link.positions + y * spread_width(link) + x,
            y * link.stride_y - link.padding_y, x * link.stride_x - link.padding_x};
  }
  __device__ Spot tap_down(const Link& link, int k) const {
    const int taps = link.dense ? 1 : link.taps, of_kernel = k % taps;
    return {k / taps * p_.batch * link.positions, k / taps * link.depth + of_kernel, -(of_kernel / link.kernel_width),
            -(of_kernel % link.kernel_width)};
  }
  __device__ Spot cell(const Link& link, int i) const {
    if (link.dense) return {i, 0, 0, 0};
    const int pixel = i % link.pixels_below;
    return {i / link.pixels_below * link.positions, 0, pixel / link.width_below + link.padding_y,
            pixel % link.width_below + link.padding_x};
  }

  const Problem<T>& p_;
};

}  // namespace ceprop::cuda::conv
