// The product that a step is made of, on one tile: 16 units of a layer times `pass` samples. The threads of a block
// share it by outputs and by slices of the depth; the slices are added up in a fixed order afterwards, so that the same
// call gives the same bits.
//
//   weights: [depth][tile_units], states: [depth][pass], both in shared memory
//   partial: [slice][tile_units][pass + partial_padding]
//
// A tile type has: Staged, the number type of staged operands; converts, whether that is not the network's; depth_step
// and column_step, of which depths and passes are multiples; staged(), which converts; add, which takes more of the
// depth; spill.
#pragma once

#include <type_traits>

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

template <class T>
struct alignas(16) Four {
  T v[4];
};
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}

// FP32 or FP64: 4 x 4 outputs a thread.
template <class T>
class FmaTile {
 public:
  using Staged = T;
  static constexpr bool converts = false;
  static constexpr int depth_step = 1, column_step = 8;
  __device__ static T staged(T number) { return number; }

  __device__ explicit FmaTile(int pass) : pass_(pass) {
    // Neighbouring threads have neighbouring samples: they read the same weights and different banks of states.
    const int groups = tile_units / 4 * (pass / 4), group = static_cast<int>(threadIdx.x) % groups;
    slices_ = block_threads / groups;
    slice_ = static_cast<int>(threadIdx.x) / groups;
    unit_ = 4 * (group / (pass / 4));
    column_ = 4 * (group % (pass / 4));
  }

  __device__ int slices() const { return slices_; }

  __device__ void add(const T* weights, const T* states, int depth) {
    if (slice_ >= slices_) return;
#pragma unroll 4
    for (int k = slice_; k < depth; k += slices_) {
      const Four<T> w = load_four(weights + k * tile_units + unit_), s = load_four(states + k * pass_ + column_);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum_[i][j] += w.v[i] * s.v[j];
    }
  }

  __device__ void spill(T* partial) const {
    if (slice_ >= slices_) return;
    T* to = partial + (slice_ * tile_units + unit_) * (pass_ + partial_padding) + column_;
#pragma unroll
    for (int i = 0; i < 4; ++i, to += pass_ + partial_padding)
      *reinterpret_cast<Four<T>*>(to) = {sum_[i][0], sum_[i][1], sum_[i][2], sum_[i][3]};
  }

 private:
  int pass_, slices_, slice_, unit_, column_;
  T sum_[4][4] = {};
};

#if DEVICE_HAS_TENSOR_FLOATS
// Tensor cores with FP32 sums: a warp has 16 x 16 outputs of a slice. Number is wmma::precision::tf32 or __nv_bfloat16.
template <class Number>
class TensorTile {
  static constexpr bool is_tf32 = !std::is_same_v<Number, __nv_bfloat16>;
  static constexpr int depth_of_product = is_tf32 ? 8 : 16;
  template <class Use, class Order>
  using Operand = nvcuda::wmma::fragment<Use, 16, 16, depth_of_product, Number, Order>;

 public:
  using Staged = std::conditional_t<is_tf32, float, Number>;
  static constexpr bool converts = !is_tf32;
  static constexpr int depth_step = 16, column_step = 16;
  __device__ static Staged staged(float number) {
    if constexpr (is_tf32)
      return number;
    else
      return __float2bfloat16(number);
  }

  __device__ explicit TensorTile(int pass) : pass_(pass) {
    const int groups = pass / 16, warp = static_cast<int>(threadIdx.x) / 32;
    slices_ = block_threads / 32 / groups;
    slice_ = warp / groups;
    column_ = 16 * (warp % groups);
    nvcuda::wmma::fill_fragment(sum_, 0.0f);
  }

  __device__ int slices() const { return slices_; }

  __device__ void add(const Staged* weights, const Staged* states, int depth) {
    using namespace nvcuda;
    if (slice_ >= slices_) return;
    for (int k = depth_of_product * slice_; k < depth; k += depth_of_product * slices_) {
      Operand<wmma::matrix_a, wmma::col_major> w;
      Operand<wmma::matrix_b, wmma::row_major> s;
      wmma::load_matrix_sync(w, weights + k * tile_units, tile_units);
      wmma::load_matrix_sync(s, states + k * pass_ + column_, pass_);
      if constexpr (is_tf32) {
#pragma unroll
        for (int i = 0; i < w.num_elements; ++i) w.x[i] = wmma::__float_to_tf32(w.x[i]);
#pragma unroll
        for (int i = 0; i < s.num_elements; ++i) s.x[i] = wmma::__float_to_tf32(s.x[i]);
      }
      wmma::mma_sync(sum_, w, s, sum_);
    }
  }

  __device__ void spill(float* partial) const {
    if (slice_ >= slices_) return;
    const int stride = pass_ + partial_padding;
    nvcuda::wmma::store_matrix_sync(partial + slice_ * tile_units * stride + column_, sum_, stride,
                                    nvcuda::wmma::mem_row_major);
  }

 private:
  int pass_, slices_, slice_, column_;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, depth_of_product, float> sum_;
};
#endif

}  // namespace ceprop::cuda
