// The tiles of units that a block owns, and where it keeps the weights into them.
#pragma once

#include "states.cuh"

namespace ceprop::cuda {

// A tile of a layer, and where the block keeps the weights into it, [below, then above][packed_stride], if it does.
template <class T>
struct Item {
  int layer, first;  // unit
  T* weights;
};

__device__ __forceinline__ int padded_depth(int depth) { return (depth + 15) / 16 * 16; }

// Neighbours below and above of which the weights are read at a step.
template <class T>
__device__ __forceinline__ int depth_below(const Problem<T>& p, int layer) {
  return layer > 0 ? p.widths[layer] : 0;
}
template <class T>
__device__ __forceinline__ int depth_above(const Problem<T>& p, int layer) {
  return layer + 1 < p.layers || p.readout ? p.widths[layer + 2] : 0;
}

// Goes through a block's tiles of one half of the layers; -1: of all. `weights`: where those of its first tile stay,
// `stride` numbers a neighbour.
template <class T>
class OwnTiles {
 public:
  __device__ OwnTiles(const Problem<T>& problem, int half, T* weights, int stride)
      : item{0, 0, nullptr}, end_of_weights(weights), p_(problem), wanted_(half), stride_(stride) {
    enter(0);
  }

  __device__ bool next() {
    for (; half_ < halves_of(p_); enter(half_ + 1))
      while (index_ < p_.layout.first[half_][blockIdx.x + 1]) {
        for (; index_ - before_ >= tiles_of(p_, layer_); layer_ += halves_of(p_)) before_ += tiles_of(p_, layer_);
        item = {layer_, (index_++ - before_) * tile_units, end_of_weights};
        if (p_.layout.resident)
          end_of_weights += (padded_depth(depth_below(p_, layer_)) + padded_depth(depth_above(p_, layer_))) * stride_;
        if (wanted_ < 0 || wanted_ == half_) return true;
      }
    return false;
  }

  Item<T> item;
  T* end_of_weights;  // of the tiles so far

 private:
  __device__ void enter(int half) {
    half_ = layer_ = half;
    before_ = 0;
    if (half < halves_of(p_)) index_ = p_.layout.first[half][blockIdx.x];
  }

  const Problem<T>& p_;
  int wanted_, stride_, half_, layer_, index_ = 0, before_;  // tiles of the half's earlier layers
};

}  // namespace ceprop::cuda
