// C-EP on packed weights in place: every nudged step moves  W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
//
// The input never changes, so connection 0 need not move before the end: its drive follows
//   drive <- drive - decay drive + scale (x x^T + 1) d,        1: the bias
// and the updates gather in  sum <- sum - decay sum + scale d.  In the end W[0] moves by sum^T x once.
#pragma once

#include <cmath>

#include "packed_update.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class ContinualUpdate {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  ContinualUpdate(const CepCall<T>& call, const Relaxation<Tile>& relaxation, const Contrast<Tile>& contrast,
                  int workers)
      : call_(call),
        relaxation_(relaxation),
        contrast_(contrast),
        packed_(relaxation, contrast),
        network_(call.network) {
    if (relaxation.layers()[0].drive) {
      const int64_t n = relaxation.batch();
      gram_ = Buffer<T>(relaxation.padded(n) * n);
      sum_ = Buffer<T>(relaxation.layers()[0].panels * n * width);
      changes_ = Buffer<T>(workers * n * width);
    }
  }

  // Computes x x^T + 1, in panels of its columns, and begins the sum of the updates. A barrier must follow.
  void load(const Worker& worker) {
    if (!gram_.get()) return;
    const int64_t n = relaxation_.batch(), n_in = network_.shape.input.units();
    const T* x = relaxation_.input();
    alignas(64) T packed[width * width];
    const Range mine = worker.share(panels_of(n, width));
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      T* gram = gram_.get() + panel * n * width;
      for (int64_t i = 0; i < n * width; ++i) gram[i] = network_.biases[0] ? T(1) : T(0);
      for (int64_t k = 0; k < n_in; k += width) {
        const int64_t count = n_in - k < width ? n_in - k : width;
        load_panel_transposed<Tile>(x + k * n, width, count, n, panel * width, packed);
        add_products<Tile>(gram, {gram, width}, x + k * n, n * width, packed, count, n,
                           lanes_used<Tile>(n, panel * width));
      }
    }
    const Range of_sum = worker.share(relaxation_.layers()[0].panels * n * width);
    std::fill(sum_.get() + of_sum.begin, sum_.get() + of_sum.end, T(0));
  }

  // Updates everything that this worker owns, by the contrast over `divisor` (beta, or 2 beta); without `inner` it
  // leaves the weights between layers alone. Ends with a barrier where weights of others were written.
  void move(const Worker& worker, const Part& part, const Between& between, double divisor, bool inner) {
    relaxation_.for_each_item(part, [&](const Item& item) {
      packed_.add(
          worker, item, between, inner, [&](int c) { return blend(c, divisor); }, packed_.parameters(item.layer));
      if (inner) packed_.mirror(item);
    });
    if (gram_.get()) move_drive(worker, part, blend(0, divisor));
    if (inner && !network_.free_feedback) worker.wait();
  }

  // W[0] takes what gathered in `moves` updates, where it lies: packed, or in the network. No barrier.
  void finish(const Worker& worker, int moves) const {
    if (!sum_.get()) return;
    const typename Contrast<Tile>::Sum sum{{{sum_.get(), relaxation_.input()}}, 1};
    const Blend<T> blend{T(1 - std::pow(1 - call_.lr[0] * call_.weight_decay, moves)), T(1)};
    const Layer<T>& layer = relaxation_.layers()[0];
    packed_.for_each_input(worker, [&](const Item& item) {
      if (layer.input)
        packed_.add_panel(item, sum, false, layer.below.depth, blend, layer.input);
      else
        contrast_.add_row_panel(sum, item.panel, layer.units, layer.below.depth, blend, network_.weights[0]);
    });
  }

  // Writes what lies packed back into the network's parameters. No barrier.
  void store(const Worker& worker, const Part& part, bool inner) const {
    relaxation_.for_each_item(part, [&](const Item& item) { packed_.store(item, inner); });
    packed_.for_each_input(worker, [&](const Item& item) {
      if (T* const input = relaxation_.layers()[0].input) packed_.store_weights(item, input, network_.weights[0]);
    });
  }

  // Notes the sums by which W[0] moves at the end.
  void note_parameters(const Worker& worker, const Part& part, Sanity<T>& sanity) const {
    if (!sum_.get()) return;
    const int64_t n = relaxation_.batch();
    relaxation_.for_each_item(part, [&](const Item& item) {
      if (item.layer > 0) return;
      sanity.note(worker, Sanity<T>::parameters,
                  largest_of(sum_.get() + item.panel * n * width, n,
                             lanes_used<Tile>(relaxation_.layers()[0].units, item.panel * width), width));
    });
  }
  double largest_input_update(const Sanity<T>& sanity) const {
    if (!sum_.get()) return 0;
    return static_cast<double>(relaxation_.batch()) * sanity.largest(Sanity<T>::parameters) *
           sanity.largest(Sanity<T>::inputs);
  }

  const PackedUpdate<Tile>& packed() const { return packed_; }

 private:
  // How connection c takes a contrast over `divisor`.
  Blend<T> blend(int c, double divisor) const {
    return continual_blend<T>(call_.lr[c], call_.weight_decay, divisor, static_cast<double>(relaxation_.batch()));
  }

  void move_drive(const Worker& worker, const Part& part, const Blend<T>& blend) {
    const int64_t n = relaxation_.batch();
    T* change = changes_.get() + worker.index * n * width;
    alignas(64) constexpr T zeros[width] = {};
    for_some_rows({0, n}, relaxation_.rows_together(), [&](const Range& rows) {
      relaxation_.for_each_item(part, [&](const Item& item) {
        if (item.layer > 0) return;
        const int64_t row = rows.begin * width, at = item.panel * n * width, count = (rows.end - rows.begin) * width;
        const T* d = contrast_.moved(worker, 0) + at;
        T* drive = relaxation_.layers()[0].drive + at + row;
        T* sum = sum_.get() + at + row;
        add_products<Tile>(change, {zeros, 0}, gram_.get() + row, n * width, d, n, rows.end - rows.begin, width);
        for (int64_t i = 0; i < count; ++i) drive[i] = blend(drive[i], change[i]);
        for (int64_t i = 0; i < count; ++i) sum[i] = blend(sum[i], d[row + i]);
      });
    });
  }

  const CepCall<T>& call_;
  const Relaxation<Tile>& relaxation_;
  const Contrast<Tile>& contrast_;
  const PackedUpdate<Tile> packed_;
  const Network<T>& network_;
  Buffer<T> gram_;     // [panel of samples][batch][width]
  Buffer<T> sum_;      // [panel][batch][width], of layer 0
  Buffer<T> changes_;  // [worker][batch][width]
};

}  // namespace ceprop::CEPROP_SET::dense
