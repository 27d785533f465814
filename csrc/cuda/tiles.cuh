// The product that everything in a step is made of, on one tile: 16 units times `pass` samples. The threads of a block
// share it by outputs and by slices of the depth; the slices are added up in a fixed order afterwards, so that the same
// call gives the same bits.
//
//   left: [depth][Tile::left_stride], rows: [depth][Tile::rows_stride(pass)], both in shared memory
//   partial: the slices' sums, in shared memory, laid out by the tile
//
// A tile type has: Staged, the number type of staged operands; converts, whether that is not the network's; depth_step
// and column_step, of which depths and passes are multiples; staged(), which converts; rows_stride() and
// packs_of_row(), how many threads stage a row; add, which takes more of the depth; spill; outputs and output, what a
// spilled product is read by.
//
// The layouts keep the 8 threads that are served at once in different banks, whatever the pass; see
// python_tests/test_cuda_banks.py.
#pragma once

#include <type_traits>

#include "pack.cuh"

namespace ceprop::cuda {

// Neighbouring samples of a unit, or units of a tile.
template <class T>
struct Output {
  int unit, column;
  Pack<T> sum;
};

// FP32 or FP64: 4 units times a pack of samples a thread.
template <class T>
class FmaTile {
 public:
  using Staged = T;
  static constexpr bool converts = false;
  static constexpr int depth_step = 1, column_step = 8, left_stride = tile_units, pack = Pack<T>::size;
  __device__ static T staged(T number) { return number; }
  __device__ static int rows_stride(int pass) { return pass; }
  __device__ static int packs_of_row(int pass) { return pass / pack; }

  __device__ explicit FmaTile(int pass) : pass_(pass), groups_(tile_units / 4 * (pass / pack)) {
    const int group = static_cast<int>(threadIdx.x) % groups_;
    slices_ = block_threads / groups_;
    slice_ = static_cast<int>(threadIdx.x) / groups_;
    unit_ = unit_of(group);
    column_ = column_of(group);
  }

  __device__ void add(const T* left, const T* rows, int depth) {
    if (slice_ >= slices_ || slice_ >= depth) return;
    Operands next = operands(left, rows, slice_);
    for (int k = slice_; k < depth; k += slices_) {
      const Operands now = next;
      // The next are on their way while these are multiplied.
      next = operands(left, rows, k + slices_ < depth ? k + slices_ : k);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < pack; ++j) sum_[i].v[j] += now.left[i / pack].v[i % pack] * now.row.v[j];
    }
  }

  // [slice][4][groups] packs: neighbours side by side.
  __device__ void spill(T* partial) const {
    if (slice_ >= slices_) return;
    T* to = partial + pack * (slice_ * 4 * groups_ + static_cast<int>(threadIdx.x) % groups_);
#pragma unroll
    for (int i = 0; i < 4; ++i) store_pack(to + pack * i * groups_, sum_[i]);
  }

  __device__ int outputs() const { return 4 * groups_; }
  __device__ Output<T> output(const T* partial, int index) const {
    const int group = index % groups_;
    Output<T> out{unit_of(group) + index / groups_, column_of(group), {}};
    for (int slice = 0; slice < slices_; ++slice) out.sum += load_pack(partial + pack * (slice * 4 * groups_ + index));
    return out;
  }
  // One number of a spilled product.
  __device__ T sum(const T* partial, int unit, int column) const {
    const int first = column / pack / 8 * 32, group = first + unit / 4 * packs_beside(first) + column / pack % 8;
    const T* from = partial + pack * (unit % 4 * groups_ + group) + column % pack;
    T sum = 0;
    for (int slice = 0; slice < slices_; ++slice) sum += from[pack * slice * 4 * groups_];
    return sum;
  }

 private:
  struct Operands {
    Pack<T> left[4 / pack], row;
  };
  __device__ Operands operands(const T* left, const T* rows, int k) const {
    Operands got;
#pragma unroll
    for (int i = 0; i < 4 / pack; ++i) got.left[i] = load_pack(left + k * left_stride + unit_ + i * pack);
    got.row = load_pack(rows + k * pass_ + column_);
    return got;
  }
  // Neighbouring threads have neighbouring packs of 8, or as many as are left, then those of other units: 8 packs have
  // different banks, and what is read twice is the same.
  __device__ int packs_beside(int group) const {
    const int left = pass_ / pack - group / 32 * 8;
    return left < 8 ? left : 8;
  }
  __device__ int unit_of(int group) const { return group % 32 / packs_beside(group) * 4; }
  __device__ int column_of(int group) const { return (group / 32 * 8 + group % 32 % packs_beside(group)) * pack; }

  int pass_, groups_, slices_, slice_, unit_, column_;
  Pack<T> sum_[4] = {};
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
  static constexpr int depth_step = 16, column_step = 16, left_stride = tile_units + tensor_padding;
  __device__ static Staged staged(float number) {
    if constexpr (is_tf32)
      return number;
    else
      return __float2bfloat16(number);
  }
  __device__ static int rows_stride(int pass) { return pass + tensor_padding; }
  // Threads that store at once stay within a row: some have nothing to store.
  __device__ static int packs_of_row(int pass) { return is_tf32 ? (pass + 31) / 32 * 8 : 16; }

  __device__ explicit TensorTile(int pass) : stride_(pass + tensor_padding), line_(pass % 32 == 0 ? pass : stride_) {
    const int groups = pass / 16, warp = static_cast<int>(threadIdx.x) / 32;
    slices_ = block_threads / 32 / groups;
    slice_ = warp / groups;
    column_ = 16 * (warp % groups);
    nvcuda::wmma::fill_fragment(sum_, 0.0f);
  }

  __device__ void add(const Staged* left, const Staged* rows, int depth) {
    using namespace nvcuda;
    if (slice_ >= slices_) return;
    for (int k = depth_of_product * slice_; k < depth; k += depth_of_product * slices_) {
      Operand<wmma::matrix_a, wmma::col_major> w;
      Operand<wmma::matrix_b, wmma::row_major> s;
      wmma::load_matrix_sync(w, left + k * left_stride, left_stride);
      wmma::load_matrix_sync(s, rows + k * stride_ + column_, stride_);
      if constexpr (is_tf32) {
#pragma unroll
        for (int i = 0; i < w.num_elements; ++i) w.x[i] = wmma::__float_to_tf32(w.x[i]);
#pragma unroll
        for (int i = 0; i < s.num_elements; ++i) s.x[i] = wmma::__float_to_tf32(s.x[i]);
      }
      wmma::mma_sync(sum_, w, s, sum_);
    }
  }

  // [slice][tile_units][stride]
  __device__ void spill(float* partial) const {
    if (slice_ >= slices_) return;
    nvcuda::wmma::store_matrix_sync(partial + slice_ * tile_units * stride_ + column_, sum_, stride_,
                                    nvcuda::wmma::mem_row_major);
  }

  // Where 8 packs may go on in the next row, those of the padding too: their column is none of the pass.
  __device__ int outputs() const { return tile_units * line_ / 4; }
  __device__ Output<float> output(const float* partial, int index) const {
    Output<float> out{4 * index / line_, 4 * index % line_, {}};
    for (int slice = 0; slice < slices_; ++slice)
      out.sum += load_pack(partial + (slice * tile_units + out.unit) * stride_ + out.column);
    return out;
  }

 private:
  int stride_, line_, slices_, slice_, column_;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, depth_of_product, float> sum_;
};
#endif

}  // namespace ceprop::cuda
