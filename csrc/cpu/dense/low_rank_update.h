// C-EP on the inner connections of a tied network without touching a weight until the nudged phase ends. Plain steps
// telescope: with r the firing rates, 0 the free phase's end and D = r_t - r_0,
//   W[c](t) = W[c](0) + k (r_t[c]^T r_t[c-1] - r_0[c]^T r_0[c-1]),   k = lr / (beta B),
// so that from a neighbour m, up or down, the constant weights' drive of layer l lacks only
//   k (r_t[m] r_t[m]^T) D[l] + k (r_t[m] D[m]^T) r_0[l]:
// products with B x B matrices, for B below the widths far fewer operations than moving both copies of the weights.
// Every factor D is small: no digits are lost to differences of large sums. ../../model/costs.h says where this is
// exact.
#pragma once

#include <algorithm>
#include <vector>

#include "packed_update.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class LowRankUpdate {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  LowRankUpdate(const CepCall<T>& call, const Relaxation<Tile>& relaxation, const Contrast<Tile>& contrast)
      : call_(call), relaxation_(relaxation), contrast_(contrast), network_(call.network) {
    const int64_t n = relaxation.batch();
    for (int l = 0; l < layer_count(); ++l) {
      away_.emplace_back(relaxation.layers()[l].panels * n * width);
      of_away_.emplace_back(relaxation.padded(n) * n);
      of_free_.emplace_back(relaxation.padded(n) * n);
    }
  }

  // Begins where the free phase ended. A barrier must follow.
  void load(const Worker& worker) {
    for (int l = 0; l < layer_count(); ++l) {
      const Range mine = worker.share(relaxation_.layers()[l].panels * relaxation_.batch() * width);
      std::fill(away_[l].get() + mine.begin, away_[l].get() + mine.end, T(0));
    }
  }

  // Computes the B x B matrices of a step from buffer `from`. Every worker takes some rows of each. Ends with a
  // barrier.
  void prepare(const Worker& worker, int from) {
    const Range rows = worker.share(relaxation_.batch());
    for (int l = 0; l < layer_count(); ++l)
      for (int64_t row = rows.begin; row < rows.end; ++row)
        for (int64_t sample = 0; sample < relaxation_.batch(); ++sample)
          of_away_[l].get()[at(row, sample)] = of_free_[l].get()[at(row, sample)] = 0;
    for (int m = 0; m < layer_count(); ++m) {
      const T* seen = relaxation_.buffer(from, m).seen;
      add_products_with(seen, seen, m, rows, of_away_);
      add_products_with(seen, away_[m].get(), m, rows, of_free_);
    }
    worker.wait();
  }

  // Adds to the drive [rows][width] of a panel what the moved weights would have brought.
  void correct(const Item& item, const Range& rows, T* drive) const {
    const int64_t n = relaxation_.batch(), stride = n * width, at = item.panel * stride, row = rows.begin * width;
    const int64_t count = rows.end - rows.begin;
    const T* free = relaxation_.buffer(kept_free, item.layer).seen + at;
    const int64_t lanes = lanes_used<Tile>(relaxation_.layers()[item.layer].units, item.panel * width);
    const Start<T> from{drive, width};
    add_products<Tile>(drive, from, of_away_[item.layer].get() + row, stride, away_[item.layer].get() + at, n, count,
                       lanes);
    add_products<Tile>(drive, from, of_free_[item.layer].get() + row, stride, free, n, count, lanes);
  }

  // The owner of a panel takes its D, once it has moved to buffer `to`.
  void follow(const Item& item, int to) {
    const int64_t count = relaxation_.batch() * width, at = item.panel * count;
    const T* free = relaxation_.buffer(kept_free, item.layer).seen + at;
    const T* seen = relaxation_.buffer(to, item.layer).seen + at;
    T* away = away_[item.layer].get() + at;
    for (int64_t i = 0; i < count; ++i) away[i] = seen[i] - free[i];
  }

  // The weights between layers move at last, from the states in `buffer`, where they lie: packed in both copies, or in
  // the network. No barrier.
  void finish(const Part& part, int buffer, const PackedUpdate<Tile>& packed) const {
    const auto sum_of = [&](int c) {
      return typename Contrast<Tile>::Sum{{{away_[c].get(), relaxation_.buffer(buffer, c - 1).seen},
                                           {relaxation_.buffer(kept_free, c).seen, away_[c - 1].get()}},
                                          2};
    };
    relaxation_.for_each_item(part, [&](const Item& item) {
      const auto [l, panel] = item;
      const Layer<T>& layer = relaxation_.layers()[l];
      if (!relaxation_.stays_packed()) {
        if (l > 0)
          contrast_.add_row_panel(sum_of(l), panel, layer.units, layer.below.depth, Blend<T>{0, rate(l)},
                                  network_.weights[l]);
        return;
      }
      if (l > 0) packed.add_panel(item, sum_of(l), false, layer.below.depth, {0, rate(l)}, layer.below.weights);
      if (l + 1 < layer_count())
        packed.add_panel(item, sum_of(l + 1), true, layer.above.depth, {0, rate(l + 1)}, layer.above.weights);
    });
  }

 private:
  T rate(int c) const {
    return static_cast<T>(call_.lr[c] / (call_.nudge.beta * static_cast<double>(relaxation_.batch())));
  }

  int layer_count() const { return network_.shape.layer_count(); }

  // Where [batch][batch] matrices, in panels of their columns, hold an element.
  int64_t at(int64_t row, int64_t sample) const {
    return sample / width * relaxation_.batch() * width + row * width + sample % width;
  }

  // Adds matrices[l][row][sample] += k (r_t[m][row] . other[m][sample]) for these rows and both neighbours l of layer
  // m.
  void add_products_with(const T* seen, const T* other, int m, const Range& rows,
                         const std::vector<Buffer<T>>& matrices) const {
    using Block = Dots<Tile>;
    const int64_t n = relaxation_.batch();
    for (int64_t row = rows.begin; row < rows.end; row += Block::rows)
      for (int64_t sample = 0; sample < n; sample += Block::columns) {
        const T *left[Block::rows], *right[Block::columns];  // at the edge the last one, again and again
        for (int i = 0; i < Block::rows; ++i) left[i] = seen + std::min(row + i, rows.end - 1) * width;
        for (int j = 0; j < Block::columns; ++j) right[j] = other + std::min(sample + j, n - 1) * width;
        const auto products = Block::of(left, right, n * width, relaxation_.layers()[m].units);
        for (const int l : {m - 1, m + 1}) {
          if (l < 0 || l >= layer_count()) continue;
          const T of_connection = rate(l > m ? l : m);
          for (int64_t i = 0; i < Block::rows && row + i < rows.end; ++i)
            for (int64_t j = 0; j < Block::columns && sample + j < n; ++j)
              matrices[l].get()[at(row + i, sample + j)] += of_connection * products[i * Block::columns + j];
        }
      }
  }

  const CepCall<T>& call_;
  const Relaxation<Tile>& relaxation_;
  const Contrast<Tile>& contrast_;
  const Network<T>& network_;
  std::vector<Buffer<T>> away_;     // D per layer, [panel][batch][width]
  std::vector<Buffer<T>> of_away_;  // what multiplies D, per layer, [panel of samples][batch][width]
  std::vector<Buffer<T>> of_free_;  // what multiplies r_0
};

}  // namespace ceprop::CEPROP_SET::dense
