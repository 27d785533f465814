// The product that everything in a step is made of, on one tile: 16 units times `pass` samples. The threads of a block
// share it by outputs and by slices of the depth; the slices are added up in a fixed order afterwards, so that the same
// call gives the same bits.
//
//   left: [depth][Tile::left_stride], rows: [depth][Tile::rows_stride(pass)], both in shared memory
//   partial: the slices' sums, in shared memory, laid out by the tile
//
// A tile type has: Staged, the number type of staged operands; converts, whether that is not the network's; depth_step
// and column_step, of which depths and passes are multiples; staged(), which converts; rows_stride() and
// packs_of_row(), how many threads stage a row; Share, what a thread does of any tile of a pass; add, which takes more
// of the depth; spill; outputs and output, what a spilled product is read by.
//
// The layouts keep the 8 threads that are served at once in different banks, whatever the pass; see
// python_tests/cuda_emulated/test_cuda_banks.py.
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

  // What a thread does of every tile, worked out once.
  struct Share {
    int pass, groups, group, slices, slice, unit, column;

    __device__ explicit Share(int samples) : pass(samples), groups(tile_units / 4 * (pass / pack)) {
      group = static_cast<int>(threadIdx.x) % groups;
      slices = block_threads / groups;
      slice = static_cast<int>(threadIdx.x) / groups;
      unit = unit_of(group);
      column = (group / 32 * 8 + group % 32 % packs_beside(group)) * pack;
    }
    // Neighbouring threads have neighbouring packs of 8, or as many as are left, then those of other units: 8 packs
    // have different banks, and what is read twice is the same.
    __device__ int packs_beside(int group) const {
      const int left = pass / pack - group / 32 * 8;
      return left < 8 ? left : 8;
    }
    __device__ int unit_of(int group) const { return group % 32 / packs_beside(group) * 4; }
  };

  __device__ explicit FmaTile(const Share& share) : own_(share) {}

  __device__ void add(const T* left, const T* rows, int depth) {
    if (own_.slice >= own_.slices) return;
    const T* from_left = left + own_.slice * left_stride + own_.unit;
    const T* from_row = rows + own_.slice * own_.pass + own_.column;
    int k = own_.slice;
    for (; k + (at_once - 1) * own_.slices < depth; k += at_once * own_.slices) add_some<at_once>(from_left, from_row);
    for (; k < depth; k += own_.slices) add_some<1>(from_left, from_row);
  }

  // [slice][4][groups] packs: neighbours side by side.
  __device__ void spill(T* partial) const {
    if (own_.slice >= own_.slices) return;
    T* to = partial + pack * (own_.slice * 4 * own_.groups + own_.group);
#pragma unroll
    for (int i = 0; i < 4; ++i) store_pack(to + pack * i * own_.groups, sum_[i]);
  }

  // No more than threads, so that `index` is the thread's own, whose group is that of its slice's sums.
  __device__ int outputs() const { return 4 * own_.groups; }
  __device__ Output<T> output(const T* partial, int index) const {
    Output<T> out{own_.unit + own_.slice, own_.column, {}};
    for (int slice = 0; slice < own_.slices; ++slice)
      out.sum += load_pack(partial + pack * (slice * 4 * own_.groups + index));
    return out;
  }

 private:
  static constexpr int at_once = 4;  // operands of so many neighbours are under way before the first are multiplied

  // The slice's next neighbours.
  template <int count>
  __device__ __forceinline__ void add_some(const T*& from_left, const T*& from_row) {
    Pack<T> left[count][4 / pack], row[count];
#pragma unroll
    for (int n = 0; n < count; ++n) {
#pragma unroll
      for (int i = 0; i < 4 / pack; ++i) left[n][i] = load_pack(from_left + i * pack);
      row[n] = load_pack(from_row);
      from_left += own_.slices * left_stride;
      from_row += own_.slices * own_.pass;
    }
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < pack; ++j) sum_[i].v[j] += left[n][i / pack].v[i % pack] * row[n].v[j];
  }

  Share own_;
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

  struct Share {
    int stride, line, slices, slice, column;

    __device__ explicit Share(int pass) : stride(pass + tensor_padding), line(pass % 32 == 0 ? pass : stride) {
      const int groups = pass / 16, warp = static_cast<int>(threadIdx.x) / 32;
      slices = block_threads / 32 / groups;
      slice = warp / groups;
      column = 16 * (warp % groups);
    }
  };

  __device__ explicit TensorTile(const Share& share) : own_(share) { nvcuda::wmma::fill_fragment(sum_, 0.0f); }

  __device__ void add(const Staged* left, const Staged* rows, int depth) {
    using namespace nvcuda;
    if (own_.slice >= own_.slices) return;
    for (int k = depth_of_product * own_.slice; k < depth; k += depth_of_product * own_.slices) {
      Operand<wmma::matrix_a, wmma::col_major> w;
      Operand<wmma::matrix_b, wmma::row_major> s;
      wmma::load_matrix_sync(w, left + k * left_stride, left_stride);
      wmma::load_matrix_sync(s, rows + k * own_.stride + own_.column, own_.stride);
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
    if (own_.slice >= own_.slices) return;
    nvcuda::wmma::store_matrix_sync(partial + own_.slice * tile_units * own_.stride + own_.column, sum_, own_.stride,
                                    nvcuda::wmma::mem_row_major);
  }

  // Where 8 packs may go on in the next row, those of the padding too: their column is none of the pass.
  __device__ int outputs() const { return tile_units * own_.line / 4; }
  __device__ Output<float> output(const float* partial, int index) const {
    Output<float> out{4 * index / own_.line, 4 * index % own_.line, {}};
    for (int slice = 0; slice < own_.slices; ++slice)
      out.sum += load_pack(partial + (slice * tile_units + out.unit) * own_.stride + out.column);
    return out;
  }

 private:
  Share own_;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, depth_of_product, float> sum_;
};
#endif

}  // namespace ceprop::cuda
