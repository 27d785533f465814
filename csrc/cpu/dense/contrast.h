// The contrast between two states, as sums of outer products over the batch:
//
//   tied          dW[c] = r'[c]^T r'[c-1] - r[c]^T r[c-1] = d[c]^T r'[c-1] + r[c]^T d[c-1],   d = r' - r
//   vector field  dW[c] = d[c]^T r*[c-1],   dV[c] = r*[c]^T d[c-1],                           d = s' - s
//   shared        both get what tied weights would
//   input         dW[0] = d[0]^T x in every case;   db[c] = sum d[c]
//
// A gate multiplies the d of a vector field by its slopes; by connection those of d[c] and of d[c-1] are not the same.
// r is the firing rate of a state s. The tied form on the right is the one computed: it never subtracts two large sums,
// so that in float32 the contrast keeps the digits that the states have.
#pragma once

#include <vector>

#include "relaxation.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class Contrast {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  // The factors of upper^T lower are panels of the layer above a connection and of the layer (or input) below it.
  struct Factors {
    const T* upper;
    const T* lower;
  };
  struct Sum {
    Factors term[2];
    int count;
  };

  Contrast(const Relaxation<Tile>& relaxation, bool shared_update, int workers)
      : relaxation_(relaxation),
        network_(relaxation.network()),
        learns_(learns_by(network_.free_feedback, shared_update)),
        moved_(workers),
        moved_below_(workers) {
    for (int l = 0; l < network_.shape.layer_count(); ++l) {
      const int64_t panels = relaxation.layers()[l].panels;
      for (std::vector<Buffer<T>>& moved : moved_) moved.emplace_back(panels * stride());
      if (relaxation.gate() == Gate::connection)
        for (std::vector<Buffer<T>>& moved : moved_below_) moved.emplace_back(panels * stride());
      for (int64_t panel = 0; panel < panels; ++panel) {
        row_panels_.push_back({l, panel});
        row_cost_.push_back(row_cost_.back() + static_cast<double>(network_.shape.units_below(l)));
      }
    }
  }

  // Takes d, every worker for itself: it reads the states in any case, and reading another's d would fetch as many
  // lines again from that core.
  void differ(const Worker& worker, const Between& between) {
    for (int l = 0; l < network_.shape.layer_count(); ++l) {
      const T* before = shown(between.earlier, l);
      const T* after = shown(between.later, l);
      T* d = moved_[worker.index][l].get();
      const int64_t count = relaxation_.layers()[l].panels * stride();
      for (int64_t i = 0; i < count; ++i) d[i] = after[i] - before[i];
      if (relaxation_.gate() == Gate::none) continue;
      const StateBuffer<T>& slopes = relaxation_.buffer(between.slopes, l);
      if (slopes.down != slopes.up && l < network_.shape.output) {
        T* d_below = moved_below_[worker.index][l].get();
        for (int64_t i = 0; i < count; ++i) d_below[i] = d[i] * slopes.down[i];
      }
      for (int64_t i = 0; i < count; ++i) d[i] *= slopes.up[i];
    }
  }

  // W[layer] and b[layer] learn from this d.
  const T* moved(const Worker& worker, int layer) const { return moved_[worker.index][layer].get(); }
  // V[layer + 1] learns from this one.
  const T* moved_below(const Worker& worker, int layer) const {
    return (relaxation_.gate() == Gate::connection ? moved_below_ : moved_)[worker.index][layer].get();
  }

  // The sum that a copy of the weights of connection c learns from.
  Sum sum_of(const Worker& worker, int c, Copy copy, const Between& between) const {
    const Terms terms = terms_of(learns_, c == 0, copy);
    Sum sum{};
    if (terms.above_moves)
      sum.term[sum.count++] = {moved(worker, c), c == 0 ? relaxation_.input()
                                                        : relaxation_.buffer(between.shown_below(learns_), c - 1).seen};
    if (terms.below_moves)
      sum.term[sum.count++] = {relaxation_.buffer(between.shown_above(learns_), c).seen, moved_below(worker, c - 1)};
    return sum;
  }

  // Blends `out` with the contrast for the rows [first, end) and one panel of lanes. `upper_rows`: a row is a unit of
  // the upper layer and a lane one of the lower, as in row-major weights; else the other way round. `out` points to row
  // 0; only `valid` lanes are touched.
  void add_rows(const Sum& sum, bool upper_rows, int64_t first, int64_t end, int64_t lane_panel, const Blend<T>& blend,
                T* out, int64_t out_stride, int64_t valid) const {
    for (int64_t panel = first / width; panel * width < end; ++panel) {
      const int64_t rows = end - panel * width < width ? end - panel * width : width;
      for (int64_t block = 0; block < row_blocks<Tile>(rows); ++block) {
        const Range range = row_block<Tile>(rows, block);
        const int64_t at = panel * stride() + range.begin;
        Product<T> products[2];
        for (int i = 0; i < sum.count; ++i) {
          const auto& [upper, lower] = sum.term[i];
          products[i] = {(upper_rows ? upper : lower) + at, (upper_rows ? lower : upper) + lane_panel * stride()};
        }
        with_constant_rows<Tile::max_rows>(range.end - range.begin, [&]<int count>() {
          T* to = out + (panel * width + range.begin) * out_stride;
          if (valid <= Tile::lanes)
            outer_products<Tile, count, 1>(products, sum.count, relaxation_.batch(), blend, to, out_stride, valid);
          else
            outer_products<Tile, count, 2>(products, sum.count, relaxation_.batch(), blend, to, out_stride, valid);
        });
      }
    }
  }

  // Does the same for a row-major [upper units][lower units] matrix: the rows of one upper panel, all lanes.
  void add_row_panel(const Sum& sum, int64_t row_panel, int64_t upper, int64_t lower, const Blend<T>& blend,
                     T* matrix) const {
    const int64_t first = row_panel * width, end = first + width < upper ? first + width : upper;
    for (int64_t lane_panel = 0; lane_panel * width < lower; ++lane_panel) {
      const int64_t lane = lane_panel * width;
      add_rows(sum, true, first, end, lane_panel, blend, matrix + lane, lower, lanes_used<Tile>(lower, lane));
    }
  }

  // Blends `out` with the sum over the batch of one panel [batch][width]; only `valid` lanes are touched.
  void add_batch_sum(const T* panel, const Blend<T>& blend, T* out, int64_t valid) const {
    using Vector = typename Tile::Vector;
    Vector sum[2] = {};
    for (int64_t sample = 0; sample < relaxation_.batch(); ++sample, panel += width)
      for (int v = 0; v < 2; ++v) sum[v] += *reinterpret_cast<const Vector*>(panel + v * Tile::lanes);
    for (int64_t lane = 0; lane < valid; ++lane)
      out[lane] = blend(out[lane], T(sum[lane / Tile::lanes][lane % Tile::lanes]));
  }

  // Blends the row-major gradients with the contrast of every connection of the dynamics. No barrier.
  void add_to_gradients(const Worker& worker, const Between& between, const Blend<T>& blend, const EpCall<T>& to) {
    const Range mine = worker.share(row_cost_);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const auto [c, panel] = row_panels_[item];
      const int64_t upper = relaxation_.layers()[c].units, lower = relaxation_.layers()[c].below.depth,
                    first = panel * width;
      add_row_panel(sum_of(worker, c, Copy::weights, between), panel, upper, lower, blend, to.gradients[c]);
      if (c > 0 && network_.free_feedback)
        add_row_panel(sum_of(worker, c, Copy::feedback, between), panel, upper, lower, blend,
                      to.feedback_gradients[c - 1]);
      if (to.bias_gradients[c])
        add_batch_sum(moved(worker, c) + panel * stride(), blend, to.bias_gradients[c] + first,
                      lanes_used<Tile>(upper, first));
    }
  }

  // Blends R and c with e^T s and sum e, where e is [panel][batch][width] of the classes and s the top layer's states
  // in `buffer`. No barrier.
  void add_to_readout(const Worker& worker, const T* error, int buffer, const Blend<T>& blend, T* weights,
                      T* biases) const {
    const int64_t classes = network_.shape.classes;
    const Sum sum{{{error, relaxation_.buffer(buffer, network_.shape.output).state}}, 1};
    const Range mine = worker.share(panels_of(classes, width));
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      const int64_t first = panel * width;
      add_row_panel(sum, panel, classes, relaxation_.layers().back().units, blend, weights);
      if (biases) add_batch_sum(error + panel * stride(), blend, biases + first, lanes_used<Tile>(classes, first));
    }
  }

 private:
  int64_t stride() const { return relaxation_.batch() * width; }

  // What a layer shows of its state: tied weights learn from r, a vector field from s.
  const T* shown(int buffer, int layer) const {
    const StateBuffer<T>& of = relaxation_.buffer(buffer, layer);
    return moves_states(learns_) ? of.state : of.seen;
  }

  const Relaxation<Tile>& relaxation_;
  const Network<T>& network_;
  const Learns learns_;
  std::vector<std::vector<Buffer<T>>> moved_;        // d per worker and layer, [panel][batch][width]
  std::vector<std::vector<Buffer<T>>> moved_below_;  // with a gate by connection: the d that V learns from
  std::vector<Item> row_panels_;
  std::vector<double> row_cost_{0.0};
};

}  // namespace ceprop::CEPROP_SET::dense
