// C-EP on packed weights in place: every nudged step moves  W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
//
// A worker moves the weights into its own units: those from below by the contrast of W[l], those from above by that of
// V[l + 1]. Tied weights are held twice: one of the owners moves them and writes both copies.
//
// The input never changes, so connection 0 need not move before the end: its drive follows
//   drive <- drive - decay drive + scale (x x^T + 1) d,        1: the bias
// and the updates gather in  sum <- sum - decay sum + scale d.  In the end W[0] moves by sum^T x once.
#pragma once

#include <cmath>
#include <vector>

#include "contrast.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class ContinualUpdate {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  ContinualUpdate(const CepCall<T>& call, const Relaxation<Tile>& relaxation, const Contrast<Tile>& contrast,
                  int workers)
      : relaxation_(relaxation),
        contrast_(contrast),
        network_(call.network),
        rate_(call.lr),
        weight_decay_(call.weight_decay) {
    if (relaxation.layers()[0].drive) {
      const int64_t n = relaxation.batch();
      gram_ = Buffer<T>(relaxation.padded(n) * n);
      sum_ = Buffer<T>::zeros(relaxation.layers()[0].panels * n * width);
      changes_ = Buffer<T>(workers * n * width);
    }
  }

  // Computes x x^T + 1, in panels of its columns. Ends with a barrier.
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
    worker.wait();
  }

  // Updates everything that this worker owns, by the contrast over `divisor` (beta, or 2 beta); without `inner` it
  // leaves the weights between layers alone. Ends with a barrier where weights of others were written.
  void move(const Worker& worker, const Part& part, const Between& between, double divisor, bool inner) {
    const int64_t n = relaxation_.batch();
    relaxation_.for_each_item(part, [&](const Item& item) {
      const auto [l, panel] = item;
      const Layer<T>& layer = relaxation_.layers()[l];
      const Blend<T> own = blend(l, divisor);
      const T* d = contrast_.moved(worker, l) + panel * n * width;
      if (network_.biases[l]) contrast_.add_batch_sum(d, own, layer.bias + panel * width, width);
      const bool tied = !network_.free_feedback;
      if (layer.below.weights && (l == 0 || (inner && relaxation_.moves_from_below(l)))) {
        move_panel(layer.below, layer.units, contrast_.sum_of(worker, l, Copy::weights, between), false, panel, own);
        if (l > 0 && tied) mirror(layer.below, panel, layer.units, relaxation_.layers()[l - 1].above);
      }
      if (inner && relaxation_.moves_from_above(l)) {
        move_panel(layer.above, layer.units, contrast_.sum_of(worker, l + 1, Copy::feedback, between), true, panel,
                   blend(l + 1, divisor));
        if (tied) mirror(layer.above, panel, layer.units, relaxation_.layers()[l + 1].below);
      }
    });
    if (relaxation_.layers()[0].drive) move_drive(worker, part, blend(0, divisor));
    if (inner && !network_.free_feedback) worker.wait();
  }

  // Writes what this part owns back into the network's parameters, as far as it moved in `moves` updates. No barrier.
  void store(const Part& part, bool inner, int moves) const {
    relaxation_.for_each_item(part, [&](const Item& item) {
      const auto [l, panel] = item;
      const Layer<T>& layer = relaxation_.layers()[l];
      const int64_t first = panel * width;
      if (network_.biases[l]) store_panel<Tile>(layer.bias + first, 1, layer.units, first, network_.biases[l]);
      if (layer.drive)
        store_input_weights(panel, moves);
      else if (l == 0 || inner)
        store_panel_transposed<Tile>(layer.below.weights + first * layer.below.depth, layer.below.depth, layer.units,
                                     first, network_.weights[l], layer.below.depth);
      if (network_.free_feedback && l < network_.shape.output)
        store_panel<Tile>(layer.above.weights + first * layer.above.depth, layer.above.depth, layer.units, first,
                          network_.feedback[l]);
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

  // How connection c takes a contrast over `divisor`.
  Blend<T> blend(int c, double divisor) const {
    return continual_blend<T>(rate_[c], weight_decay_, divisor, static_cast<double>(relaxation_.batch()));
  }

 private:
  void move_panel(const Incoming<T>& incoming, int64_t units, const typename Contrast<Tile>::Sum& sum, bool upper_rows,
                  int64_t panel, const Blend<T>& blend) const {
    // Whole vectors move: nobody reads the lanes past the last unit.
    const int64_t vectors = (lanes_used<Tile>(units, panel * width) + Tile::lanes - 1) / Tile::lanes;
    contrast_.add_rows(sum, upper_rows, 0, incoming.depth, panel, blend,
                       incoming.weights + panel * incoming.depth * width, width, vectors * Tile::lanes);
  }

  // Copies a panel of weights into `units` units to where the neighbour holds the same weights.
  static void mirror(const Incoming<T>& from, int64_t panel, int64_t units, const Incoming<T>& to) {
    for (int64_t k = 0; k < from.depth; k += width)
      store_panel_transposed<Tile>(from.weights + (panel * from.depth + k) * width,
                                   std::min<int64_t>(from.depth - k, width), units, panel * width,
                                   to.weights + k * to.depth, width);
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

  void store_input_weights(int64_t panel, int moves) const {
    const typename Contrast<Tile>::Sum sum{{{sum_.get(), relaxation_.input()}}, 1};
    contrast_.add_row_panel(sum, panel, relaxation_.layers()[0].units, network_.shape.input.units(),
                            Blend<T>{T(1 - std::pow(1 - rate_[0] * weight_decay_, moves)), T(1)}, network_.weights[0]);
  }

  const Relaxation<Tile>& relaxation_;
  const Contrast<Tile>& contrast_;
  const Network<T>& network_;
  const std::vector<double> rate_;
  const double weight_decay_;
  Buffer<T> gram_;     // [panel of samples][batch][width]
  Buffer<T> sum_;      // [panel][batch][width], of layer 0
  Buffer<T> changes_;  // [worker][batch][width]
};

}  // namespace ceprop::CEPROP_SET::dense
