// C-EP on the inner connections of a tied network without touching a weight until the nudged phase ends. Plain steps
// telescope: with r the emitted states, 0 the free phase's end and D = r_t - r_0,
//   W[c](t) = W[c](0) + k (r_t[c]^T r_t[c-1] - r_0[c]^T r_0[c-1]),   k = lr / (beta B),
// so that from a neighbour m, up or down, the constant weights' drive of layer l lacks only
//   k (r_t[m] r_t[m]^T) D[l] + k (r_t[m] D[m]^T) r_0[l]:
// products with B x B matrices, for B below the widths far fewer operations than moving both copies of the weights.
// Every factor D is small: no digits are lost to differences of large sums.
#pragma once

template <class Tile>
class LowRankUpdate {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;
  using Item = typename Relaxation<Tile>::Item;

  // Whether this form exists for the call, and takes fewer operations a step than the literal one: 8 B^2 against 8 B
  // n times n' for each pair of neighbours n, n'.
  static bool pays(const CepCall<T>& call) {
    const Network<T>& network = call.network;
    if (network.free_feedback || call.symmetric || call.weight_decay != 0) return false;
    double low_rank = 0, literal = 0;
    for (int c = 1; c < network.layers; ++c) {
      const double upper = static_cast<double>(network.widths[c + 1]), lower = static_cast<double>(network.widths[c]);
      low_rank += static_cast<double>(call.batch.size) * (upper + lower);
      literal += upper * lower;
    }
    return low_rank < literal;
  }

  LowRankUpdate(const CepCall<T>& call, const Relaxation<Tile>& relaxation, const Contrast<Tile>& contrast)
      : relaxation_(relaxation), contrast_(contrast), network_(call.network) {
    const int64_t n = relaxation.batch();
    for (int l = 0; l < network_.layers; ++l) {
      rate_.push_back(static_cast<T>(call.lr[l] / (call.nudge.beta * static_cast<double>(n))));
      away_.push_back(Buffer<T>::zeros(relaxation.layers()[l].panels * n * width));
      of_away_.emplace_back(relaxation.padded(n) * n);
      of_free_.emplace_back(relaxation.padded(n) * n);
    }
  }

  // The B x B matrices of a step from field `from`. Every worker takes some rows of each. Ends with a barrier.
  void prepare(const Worker& worker, int from) {
    const Range rows = worker.share(relaxation_.batch());
    for (int l = 0; l < network_.layers; ++l)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        T* of_away = of_away_[l].get() + row * width;
        T* of_free = of_free_[l].get() + row * width;
        clear(of_away);
        clear(of_free);
        for (const int m : {l - 1, l + 1})
          if (m >= 0 && m < network_.layers) {
            const T rate = rate_[m < l ? l : m];
            const T* seen = relaxation_.field(from, m).seen;
            add_row_products(of_away, rate, seen + row * width, seen, m);
            add_row_products(of_free, rate, seen + row * width, away_[m].get(), m);
          }
      }
    worker.wait();
  }

  // Adds to the drive [batch][width] of a panel what the moved weights would have brought.
  void correct(const Item& item, T* drive) const {
    const int64_t n = relaxation_.batch(), stride = n * width, at = item.panel * stride;
    const T* free = relaxation_.field(Relaxation<Tile>::kept_free, item.layer).seen + at;
    const int64_t lanes = lanes_used<Tile>(relaxation_.layers()[item.layer].units, item.panel * width);
    add_products<Tile>(drive, of_away_[item.layer].get(), stride, away_[item.layer].get() + at, n, n, lanes);
    add_products<Tile>(drive, of_free_[item.layer].get(), stride, free, n, n, lanes);
  }

  // D of a panel, by its owner, once it has moved to field `to`.
  void follow(const Item& item, int to) {
    const int64_t count = relaxation_.batch() * width, at = item.panel * count;
    const T* free = relaxation_.field(Relaxation<Tile>::kept_free, item.layer).seen + at;
    const T* seen = relaxation_.field(to, item.layer).seen + at;
    T* away = away_[item.layer].get() + at;
    for (int64_t i = 0; i < count; ++i) away[i] = seen[i] - free[i];
  }

  // Moves the network's inner weights at last, from the states in `field`. No barrier.
  void store(const Worker& worker, int field) const {
    const Range mine = relaxation_.by_units(worker).items;
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const auto [c, panel] = relaxation_.items()[item];
      if (c == 0) continue;
      const typename Contrast<Tile>::Terms terms{
          {{away_[c].get(), relaxation_.field(field, c - 1).seen},
           {relaxation_.field(Relaxation<Tile>::kept_free, c).seen, away_[c - 1].get()}},
          2,
          T(1)};
      contrast_.add_row_panel(terms, panel, network_.widths[c + 1], network_.widths[c], Blend<T>{0, rate_[c]},
                              network_.weights[c]);
    }
  }

 private:
  // One row of a [batch][batch] matrix lies in panels of its columns.
  int64_t column(int64_t sample) const { return sample / width * relaxation_.batch() * width + sample % width; }

  void clear(T* row) const {
    for (int64_t sample = 0; sample < relaxation_.batch(); ++sample) row[column(sample)] = 0;
  }

  // row[sample] += rate * (one . all[sample]), summed over the units of layer m; four samples at once.
  void add_row_products(T* row, T rate, const T* one, const T* all, int m) const {
    using Vector = typename Tile::Vector;
    constexpr int together = 4;
    const int64_t n = relaxation_.batch(), units = relaxation_.layers()[m].units;
    for (int64_t first = 0; first < n; first += together) {
      const int count = static_cast<int>(n - first < together ? n - first : together);
      Vector sums[together] = {};
      for (int64_t panel = 0; panel * width < units; ++panel) {
        const T* a = one + panel * n * width;
        for (int v = 0; v < 2; ++v) {
          const int64_t left = units - panel * width - v * Tile::lanes;
          if (left <= 0) break;
          Vector x = *reinterpret_cast<const Vector*>(a + v * Tile::lanes);
          if (left < Tile::lanes)  // the lanes past the last unit belong to nobody
            for (int64_t lane = left; lane < Tile::lanes; ++lane) x[lane] = 0;
          for (int i = 0; i < together; ++i) {
            const int64_t sample = first + (i < count ? i : 0);
            sums[i] += x * *reinterpret_cast<const Vector*>(all + (panel * n + sample) * width + v * Tile::lanes);
          }
        }
      }
      for (int i = 0; i < count; ++i) {
        T sum = 0;
        for (int lane = 0; lane < Tile::lanes; ++lane) sum += sums[i][lane];
        row[column(first + i)] += rate * sum;
      }
    }
  }

  const Relaxation<Tile>& relaxation_;
  const Contrast<Tile>& contrast_;
  const Network<T>& network_;
  std::vector<T> rate_;             // lr / (beta B) per connection
  std::vector<Buffer<T>> away_;     // D per layer, [panel][batch][width]
  std::vector<Buffer<T>> of_away_;  // what multiplies D, per layer, [panel of samples][batch][width]
  std::vector<Buffer<T>> of_free_;  // what multiplies r_0
};
