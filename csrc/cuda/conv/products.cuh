// The products that steps and contrasts are made of, gathered by tables: rows come to shared memory in parts of the
// depth, the next on their way while one is multiplied.
#pragma once

#include "../tiles.cuh"
#include "problem.h"

namespace ceprop::cuda::conv {

// One product: sum over k in [begin, end) of (left - less_left) of unit u and row k with (rows - less_rows) of row k
// and column j. With R = row_spots[k], C = column_spots[j]:
//   left   at R.left + u * left_stride
//   rows   at R.row + C.row + y * width + x, y = (R.y + C.y) / stride_y, x = (R.x + C.x) / stride_x; zero unless both
//          divide and 0 <= y < height, 0 <= x < width
// Null: no `less`.
template <class T>
struct Operands {
  const T *left, *less_left, *rows, *less_rows;
  const Spot *row_spots, *column_spots;
  int left_stride, begin, end;
  int height, width, stride_y, stride_x;
};

template <class T>
class Products {
 public:
  static constexpr int items_of_rows = 8, items_of_left = 4;  // of a thread, on their way at once

  __device__ Products(int depth, int pass, T* work)
      : depth_(depth),
        pass_(pass),
        rows_at_once_(block_threads / pass),
        row_(static_cast<int>(threadIdx.x) / pass),
        column_(static_cast<int>(threadIdx.x) % pass),
        left_(work),
        rows_(work + 2 * depth * tile_units) {}

  // Adds a product for the units from `unit` on, of which there are `units`, and the columns from `column` on, of which
  // there are `columns`. Nobody may still read the work memory; ends with a barrier of the block.
  __device__ void add(FmaTile<T>& tile, const Operands<T>& of, int unit, int units, int column, int columns) const {
    if (of.begin >= of.end) return;
    const bool has_column = row_ < rows_at_once_ && column + column_ < columns;
    const Spot own = has_column ? of.column_spots[column + column_] : Spot{};
    const int own_unit = static_cast<int>(threadIdx.x) % tile_units;
    const bool has_unit = unit + own_unit < units;
    const int64_t unit_at = int64_t(unit + own_unit) * of.left_stride;
    T rows[items_of_rows], left[items_of_left];

    const auto fetch = [&](int first) {
#pragma unroll
      for (int i = 0; i < items_of_rows; ++i) {
        const int row = row_ + i * rows_at_once_, k = first + row;
        rows[i] = has_column && row < depth_ && k < of.end ? gathered(of, of.row_spots[k], own) : T(0);
      }
#pragma unroll
      for (int i = 0; i < items_of_left; ++i) {
        const int k = first + left_row(i);
        left[i] = has_unit && left_row(i) < depth_ && k < of.end ? left_of(of, of.row_spots[k].left + unit_at) : T(0);
      }
    };
    const auto store = [&](int buffer) {
#pragma unroll
      for (int i = 0; i < items_of_rows; ++i) {
        const int row = row_ + i * rows_at_once_;
        if (row_ < rows_at_once_ && row < depth_) rows_[(buffer * depth_ + row) * pass_ + column_] = rows[i];
      }
#pragma unroll
      for (int i = 0; i < items_of_left; ++i)
        if (left_row(i) < depth_) left_[(buffer * depth_ + left_row(i)) * tile_units + own_unit] = left[i];
    };

    fetch(of.begin);
    store(0);
    __syncthreads();
    int buffer = 0;
    for (int k = of.begin; k < of.end; k += depth_, buffer ^= 1) {
      const bool more = k + depth_ < of.end;
      if (more) fetch(k + depth_);
      tile.add(left_ + buffer * depth_ * tile_units, rows_ + buffer * depth_ * pass_, more ? depth_ : of.end - k);
      if (more) store(buffer ^ 1);
      __syncthreads();
    }
  }

 private:
  __device__ static int left_row(int item) {
    return (static_cast<int>(threadIdx.x) + item * block_threads) / tile_units;
  }
  __device__ static T left_of(const Operands<T>& of, int64_t at) {
    return of.less_left ? of.left[at] - of.less_left[at] : of.left[at];
  }
  __device__ static T gathered(const Operands<T>& of, const Spot& row, const Spot& column) {
    int y = row.y + column.y, x = row.x + column.x;
    bool there = y >= 0 && x >= 0;
    if (of.stride_y > 1 || of.stride_x > 1) {
      there = there && y % of.stride_y == 0 && x % of.stride_x == 0;
      y /= of.stride_y;
      x /= of.stride_x;
    }
    if (!there || y >= of.height || x >= of.width) return T(0);
    const int at = row.row + column.row + y * of.width + x;
    return of.less_rows ? of.rows[at] - of.less_rows[at] : of.rows[at];
  }

  int depth_, pass_, rows_at_once_, row_, column_;
  T* left_;  // [2][depth][tile_units]
  T* rows_;  // [2][depth][pass]
};

}  // namespace ceprop::cuda::conv
