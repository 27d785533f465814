// A block's share of a chain with maps: it writes into its shared memory what it works on all through a phase, the
// states that a sample starts with, own units with what drives them, and own weights.
#pragma once

#include "problem.h"
#include "way_up.cuh"

namespace ceprop::cuda::maps {

template <class T>
class Share {
 public:
  __device__ __forceinline__ Share(const Problem<T>& problem, const Memory& memory, int rank, int sample)
      : p_(problem), layout_(problem.layout), memory_(memory), rank_(rank), sample_(sample) {}

  // Memory is zero before. Nothing that is written may be read before the block's threads have met.
  __device__ __forceinline__ void load() {
    for (int l = 0; l < layout_.layers; ++l) {
      load_layer(l);
      if (l == 0) continue;
      if (layout_.joint[l].is_convolution)
        load_convolution(l);
      else
        load_dense(l);
    }
  }
  // Returns how many packs own units are: 16 bytes of neighbouring ones each.
  __device__ __forceinline__ int packs() const { return packs_; }
  // Returns where numbers of the sample begin, in an array of all samples of a layer.
  __device__ __forceinline__ int64_t of_sample(const Layer& layer) const {
    return sample_ * int64_t(layer.channels) * layer.height * layer.width;
  }

 private:
  static constexpr int bytes = sizeof(T), pack = Pack<T>::size, warps = warps_of(bytes), threads = 32 * warps;

  // States, and what belongs to own units.
  __device__ __forceinline__ void load_layer(int l) {
    const Layer& layer = layout_.layer[l];
    const int of_channel = layer.height * layer.width, units = layer.channels * of_channel;
    const T* const seen = p_.seen[l] + of_sample(layer);
    for (int i = static_cast<int>(threadIdx.x); i < units; i += threads)
      memory_.put(layout_.states + layer.states + number_of(layer, i) * bytes, seen[i]);
    for (int c = static_cast<int>(threadIdx.x); c < layer.channels; c += threads) {
      int block = 0;
      while (c >= layer.first_own[block + 1]) ++block;
      memory_.put(layer.owners + c * 4, block << 16 | (c - layer.first_own[block]));
    }
    const int first = layer.first_own[rank_], own = layer.own(rank_);
    for (int i = static_cast<int>(threadIdx.x); i < own * of_channel; i += threads) {
      const int unit = first * of_channel + i, cell = cell_of(layer, i);
      const int64_t at = of_sample(layer) + unit;
      memory_.put(layout_.own_states + cell * bytes, p_.state[l][at]);
      const T* const bias = p_.biases[l];
      const T constant = l == 0 ? p_.drive[at] : bias ? bias[layer.is_map ? first + i / of_channel : unit] : T(0);
      memory_.put(layout_.constants + cell * bytes, constant);
    }
    const int packs_of_row = layer.packs_of_row(pack);
    const int count = layer.is_map ? own * layer.height * packs_of_row : (own + pack - 1) / pack;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
      int unit = i * pack, there = min(pack, own - unit);
      if (layer.is_map) {
        const int row = i / packs_of_row, x = i % packs_of_row * pack;
        unit = row * layer.width + x;
        there = min(pack, layer.width - x);
      }
      const int number = number_of(layer, first * of_channel + unit);
      memory_.put(layout_.packs + (packs_ + i) * 16,
                  Words{{l << 8 | there, number, first * of_channel + unit, cell_of(layer, unit)}});
    }
    packs_ += count;
  }
  // Returns where the state of a unit lies among those of its layer.
  __device__ __forceinline__ static int number_of(const Layer& layer, int unit) {
    if (!layer.is_map) return unit;
    const int row = unit / layer.width;
    return row / layer.height * layer.channel + (row % layer.height + layer.margin) * layer.row + layer.margin +
           unit % layer.width;
  }
  // Returns the cell of own unit number i.
  __device__ __forceinline__ static int cell_of(const Layer& layer, int i) {
    if (!layer.is_map) return layer.first_cell + i;
    const int row = i / layer.width;
    return layer.first_cell + row / layer.height * layer.cell_channel + row % layer.height * layer.cell_row +
           i % layer.width;
  }

  __device__ __forceinline__ void load_convolution(int l) const {
    const Layer &below = layout_.layer[l - 1], &above = layout_.layer[l];
    const Joint& joint = layout_.joint[l];
    write_tiles(memory_, joint, below);
    const int taps = joint.kernel * joint.kernel, of_above = below.channels * taps, own = above.own(rank_);
    const T* const weights = p_.weights[l] + int64_t(above.first_own[rank_]) * of_above;
    for (int i = static_cast<int>(threadIdx.x); i < own * of_above; i += threads) {
      const int c = i / of_above, rest = i % of_above, from = rest / taps, tap = rest % taps;
      const int row = (from / lanes * joint.own_channels + c) * taps + tap;
      memory_.put(joint.weights + (row * of_lanes + from % lanes) * bytes, weights[i]);
    }
    const int of_channel = above.height * above.width;
    for (int i = static_cast<int>(threadIdx.x); i < own * of_channel; i += threads) {
      const int c = i / of_channel, y = i % of_channel / above.width * joint.window_height,
                x = i % above.width * joint.window_width;
      const int number = number_of(above, above.first_own[rank_] * of_channel + i);
      memory_.put(joint.spots + i * 16, Words{{(c * joint.height + y) * joint.map_row + x, c << 20 | y << 10 | x,
                                               above.states + number * bytes, cell_of(above, i)}});
    }
  }
  __device__ __forceinline__ void load_dense(int l) const {
    const Layer &below = layout_.layer[l - 1], &above = layout_.layer[l];
    const Joint& joint = layout_.joint[l];
    const int first = below.first_own[rank_] * below.channel, own = below.own(rank_) * below.channel;
    for (int row = warp_of_thread(); row < above.channels; row += warps)
      for (int i = lane_of_thread(); i < own; i += 32)
        memory_.put(joint.weights + (row * joint.numbers + i) * bytes,
                    p_.weights[l][int64_t(row) * below.channels * below.channel + first + i]);
  }

  const Problem<T>& p_;
  const Layout& layout_;
  const Memory memory_;
  const int rank_, sample_;
  int packs_ = 0;
};

}  // namespace ceprop::cuda::maps
