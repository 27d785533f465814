// The contrast between two states is the change of dPhi/dW, Phi = sum_c r[c] . F_c(r[c-1]). With U the units of a map
// unpooled to the positions of the kernel, and (.) the correlation with the receptive fields, it is
//   tied          dW[c] = U'r'[c] (.) r'[c-1] - U r[c] (.) r[c-1] = (U'r'[c] - U r[c]) (.) r'[c-1] + U r[c] (.) d[c-1]
//   vector field  dW[c] = U*d[c] (.) r*[c-1],   dV[c] = (U's - U s)r*[c] (.) s'[c-1] + U s r*[c] (.) d[c-1]
//   shared        both get the mean of what tied weights would by either
//   input         dW[0] = (U r'[0] - U r[0]) (.) x;   db[c] = sum d[c]
// U picks the maxima of each state by W, or for V by V. The right-hand forms are the ones computed: where a maximum
// stays, and without maxima everywhere, they never subtract two large sums.
#pragma once

#include <algorithm>
#include <vector>

#include "relaxation.h"

namespace ceprop::CEPROP_SET::conv {

template <class Tile>
class Contrast {
 public:
  using T = typename Tile::Scalar;

  Contrast(Relaxation<Tile>& relaxation, bool shared_update, int workers)
      : relaxation_(relaxation),
        network_(relaxation.network()),
        learns_(learns_by(network_.free_feedback, shared_update)) {
    constexpr int64_t most = max_positions<Tile>;
    int64_t expanded = 0, depth = 0;
    for (int c = 0; c < network_.shape.connection_count(); ++c) {
      const Link<Tile>& link = relaxation.link(c);
      expanded = std::max(expanded, samples_together(link) * link.positions * most);
      depth = std::max(depth, link.depth);
      if (c >= network_.shape.layer_count()) continue;
      moved_.push_back(Buffer<T>::zeros(relaxation.map(c).size() * relaxation.batch() + Tile::width));
      for (std::vector<Buffer<uint16_t>>* list : {&up_earlier_, &up_later_, &down_earlier_, &down_later_})
        list->emplace_back(link.picks_maxima() ? relaxation.batch() * link.above.places() * link.above.stride : 0);
      const int64_t tiles = (link.above.channels + most - 1) / most;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        items_.push_back({c, {link.above.channels * tile / tiles, link.above.channels * (tile + 1) / tiles}});
        cost_.push_back(cost_.back() + static_cast<double>(link.depth) * static_cast<double>(link.positions));
      }
    }
    for (int worker = 0; worker < workers; ++worker) {
      expanded_.emplace_back(expanded);
      sums_.emplace_back(most * depth);
    }
  }

  // From now on a step always leads from the earlier state to the later, by the weights that are still there: with tied
  // weights it has picked the maxima of one of the two.
  void expect_steps() { of_step_ = !network_.free_feedback; }

  // Takes what the contrast needs of both states, each worker for its samples. Ends with a barrier.
  void differ(const Worker& worker, const Between& between) {
    const Range rows = worker.share(relaxation_.batch());
    for (int c = 0; c < network_.shape.layer_count(); ++c) {
      const T *before = shown(between.earlier, c), *after = shown(between.later, c);
      const int64_t size = relaxation_.map(c).size();
      for (int64_t i = rows.begin * size; i < rows.end * size; ++i) moved_[c].get()[i] = after[i] - before[i];
    }
    for (int c = 1; c < network_.shape.layer_count(); ++c) {
      if (!relaxation_.link(c).picks_maxima()) continue;
      const auto pick = [&](const Weights<Tile>& weights, const T* below, Buffer<uint16_t>& places) {
        relaxation_.pick(worker, c, weights, below, rows, places.get());
      };
      const auto seen = [&](int buffer) { return relaxation_.buffer(buffer, c - 1).seen; };
      const Weights<Tile>&up = relaxation_.weights(c), &down = relaxation_.feedback(c);
      if (learns_ == Learns::apart) {
        pick(up, seen(between.fixed), up_earlier_[c]);
      } else {
        if (!of_step_ || relaxation_.picked_after_step(c)) pick(up, seen(between.earlier), up_earlier_[c]);
        if (!of_step_ || !relaxation_.picked_after_step(c)) pick(up, seen(between.later), up_later_[c]);
      }
      if (network_.free_feedback) {
        pick(down, shown(between.earlier, c - 1), down_earlier_[c]);
        pick(down, shown(between.later, c - 1), down_later_[c]);
      }
    }
    worker.wait();
  }

  // Calls sink.bias(), sink.weights() and, where V learns, sink.feedback() with (c, channel, contrast) for every
  // channel that is this worker's. The contrast of weights is laid out like a row of Weights. No barrier.
  template <class Sink>
  void for_each_channel(const Worker& worker, const Between& between, const Sink& sink) {
    const Range mine = worker.share(cost_);
    for (int64_t index = mine.begin; index < mine.end; ++index) {
      const auto& [c, channels] = items_[index];
      const Link<Tile>& link = relaxation_.link(c);
      const int64_t count = channels.end - channels.begin;
      T* sums = sums_[worker.index].get();
      const bool mean = learns_ == Learns::shared && c > 0 && link.picks_maxima();
      sum_terms(worker, c, channels, sum_of(c, Copy::weights, between), sums, true);
      if (mean) {
        sum_terms(worker, c, channels, sum_of(c, Copy::feedback, between), sums, false);
        for (int64_t i = 0; i < count * link.depth; ++i) sums[i] /= 2;
      }
      for (int64_t i = 0; i < count; ++i) {
        sink.bias(c, channels.begin + i, sum_moved(c, channels.begin + i));
        sink.weights(c, channels.begin + i, sums + i * link.depth);
        if (learns_ == Learns::shared && c > 0) sink.feedback(c, channels.begin + i, sums + i * link.depth);
      }
      if (learns_ != Learns::apart || c == 0) continue;
      sum_terms(worker, c, channels, sum_of(c, Copy::feedback, between), sums, true);
      for (int64_t i = 0; i < count; ++i) sink.feedback(c, channels.begin + i, sums + i * link.depth);
    }
  }

  // Blends the row-major gradients with the contrast of every connection of the dynamics. No barrier.
  void add_to_gradients(const Worker& worker, const Between& between, const Blend<T>& blend, const EpCall<T>& to) {
    for_each_channel(worker, between, IntoGradients{relaxation_, blend, to});
  }

  // Blends R and c with e^T s and sum e, where e is [batch][padded classes] and s the top layer's states in `buffer`.
  // No barrier.
  void add_to_readout(const Worker& worker, const T* error, int buffer, const Blend<T>& blend, T* weights, T* biases) {
    const int c = network_.shape.connection_count() - 1;
    const Link<Tile>& link = relaxation_.link(c);
    const Term term{error, nullptr, nullptr, nullptr, relaxation_.buffer(buffer, c - 1).state};
    const Range classes = worker.share(link.above.channels);
    for (int64_t first = classes.begin; first < classes.end; first += max_positions<Tile>) {
      const Range some{first, std::min<int64_t>(first + max_positions<Tile>, classes.end)};
      T* sums = sums_[worker.index].get();
      sum_terms(worker, c, some, {{term}, 1}, sums, true);
      for (int64_t i = some.begin; i < some.end; ++i) {
        Weights<Tile>::blend_channel(link, i, sums + (i - some.begin) * link.depth, blend, weights);
        if (!biases) continue;
        T sum = 0;
        for (int64_t row = 0; row < relaxation_.batch(); ++row) sum += error[row * link.above.stride + i];
        biases[i] = blend(biases[i], sum);
      }
    }
  }

 private:
  // A term is (U plus - U minus) (.) below: maps of the batch, and where each picks its maxima. It may have no `minus`.
  struct Term {
    const T* plus;
    const uint16_t* plus_places;
    const T* minus;
    const uint16_t* minus_places;
    const T* below;
  };
  struct Sum {
    Term term[2];
    int count;
  };
  struct Item {
    int connection;
    Range channels;
  };
  struct IntoGradients {
    const Relaxation<Tile>& relaxation;
    const Blend<T>& blend;
    const EpCall<T>& to;

    void bias(int c, int64_t channel, T sum) const {
      if (to.bias_gradients[c]) to.bias_gradients[c][channel] = blend(to.bias_gradients[c][channel], sum);
    }
    void weights(int c, int64_t channel, const T* sums) const {
      Weights<Tile>::blend_channel(relaxation.link(c), channel, sums, blend, to.gradients[c]);
    }
    void feedback(int c, int64_t channel, const T* sums) const {
      Weights<Tile>::blend_channel(relaxation.link(c), channel, sums, blend, to.feedback_gradients[c - 1]);
    }
  };

  // What a layer shows of its state: tied weights learn from r, a vector field from s.
  const T* shown(int buffer, int layer) const {
    const StateBuffer<T>& of = relaxation_.buffer(buffer, layer);
    return moves_states(learns_) ? of.state : of.seen;
  }

  Sum sum_of(int c, Copy copy, const Between& between) const {
    const uint16_t* before = (copy == Copy::feedback ? down_earlier_ : up_earlier_)[c].get();
    const uint16_t* after = (copy == Copy::feedback ? down_later_ : up_later_)[c].get();
    if (c == 0 || of_step_) (relaxation_.picked_after_step(c) ? after : before) = relaxation_.picked(c);
    const Terms terms = terms_of(learns_, c == 0, copy);
    if (c == 0) return {{{shown(between.later, 0), before, shown(between.earlier, 0), before, relaxation_.input()}}, 1};
    if (!terms.below_moves)
      return {{{moved_[c].get(), before, nullptr, nullptr, relaxation_.buffer(between.fixed, c - 1).seen}}, 1};
    const bool apart = learns_ == Learns::apart;
    const T* fixed = relaxation_.buffer(between.fixed, c).seen;
    const T* upper[2] = {apart ? fixed : shown(between.earlier, c), apart ? fixed : shown(between.later, c)};
    const Term moved_above{upper[1], after, upper[0], before, shown(between.later, c - 1)};
    const Term moved_below{upper[0], before, nullptr, nullptr, moved_[c - 1].get()};
    // Where V picks maxima, they may be others in the later state: then something moves above, too.
    if (!terms.above_moves && !relaxation_.link(c).picks_maxima()) return {{moved_below}, 1};
    return {{moved_above, moved_below}, 2};
  }

  T sum_moved(int c, int64_t channel) const {
    const Map& of = relaxation_.map(c);
    T sum = 0;
    for (int64_t row = 0; row < relaxation_.batch(); ++row)
      for (int64_t y = 0; y < of.height; ++y)
        for (int64_t x = 0; x < of.width; ++x) sum += moved_[c].get()[row * of.size() + of.at(y, x) + channel];
    return sum;
  }

  // So many samples' unpooled units stay in the first-level cache.
  int64_t samples_together(const Link<Tile>& link) const {
    const int64_t fit = (16 << 10) / (link.positions * max_positions<Tile> * static_cast<int64_t>(sizeof(T)));
    return std::clamp<int64_t>(fit, 1, relaxation_.rows_together());
  }

  // Adds the terms up in sums[channel][depth], over the whole batch in the same order whoever does it.
  void sum_terms(const Worker& worker, int c, const Range& channels, const Sum& sum, T* sums, bool fresh) {
    const Link<Tile>& link = relaxation_.link(c);
    T* expanded = expanded_[worker.index].get();
    const int64_t together = samples_together(link);
    for (int64_t row = 0; row < relaxation_.batch(); row += together) {
      const Range rows{row, std::min(row + together, relaxation_.batch())};
      for (int i = 0; i < sum.count; ++i) {
        const Term& term = sum.term[i];
        expand(link, term, rows, channels, expanded);
        with_constant_rows<max_positions<Tile>>(channels.end - channels.begin, [&]<int count>() {
          add_term<count>(link, expanded, term.below + rows.begin * link.below.size(),
                          (rows.end - rows.begin) * link.positions, sums, fresh);
        });
        fresh = false;
      }
    }
  }

  template <int count>
  static void add_term(const Link<Tile>& link, const T* expanded, const T* below, int64_t positions, T* sums,
                       bool fresh) {
    for (int64_t y = 0; y < link.convolution.kernel[0]; ++y)
      for (int64_t k = 0; k < link.run; k += Tile::width) {
        const int64_t valid = std::min<int64_t>(link.run - k, Tile::width);
        T* to = sums + y * link.run + k;
        const T* from = below + y * link.below.row() + k;
        if (valid <= Tile::lanes)
          correlate<Tile, count, 1>(to, link.depth, fresh, expanded, from, link.where.data(), positions, valid);
        else
          correlate<Tile, count, 2>(to, link.depth, fresh, expanded, from, link.where.data(), positions, valid);
      }
  }

  // to[sample][position][channel] = (U plus - U minus)
  static void expand(const Link<Tile>& link, const Term& term, const Range& rows, const Range& channels, T* to) {
    const Map& of = link.above;
    const int64_t count = channels.end - channels.begin, window = link.convolution.places();
    for (int64_t row = rows.begin; row < rows.end; ++row)
      for (int64_t place = 0; place < of.places(); ++place, to += window * count) {
        const int64_t at = row * of.size() + of.at(place / of.width, place % of.width) + channels.begin;
        const int64_t picked = (row * of.places() + place) * of.stride + channels.begin;
        for (int64_t i = 0; i < window * count; ++i) to[i] = 0;
        for (int64_t i = 0; i < count; ++i) {
          if (link.picks_maxima()) {
            to[term.plus_places[picked + i] * count + i] += term.plus[at + i];
            if (term.minus) to[term.minus_places[picked + i] * count + i] -= term.minus[at + i];
            continue;
          }
          const T value =
              (term.minus ? term.plus[at + i] - term.minus[at + i] : term.plus[at + i]) / static_cast<T>(window);
          for (int64_t k = 0; k < window; ++k) to[k * count + i] = value;
        }
      }
  }

  Relaxation<Tile>& relaxation_;
  const Network<T>& network_;
  const Learns learns_;
  bool of_step_ = false;
  std::vector<Buffer<T>> moved_;  // per layer, maps of the batch
  // Per connection, [batch][places above][stride above]: what W, or V, picks of the two states, where nothing else has
  // picked it. Of a vector field's fixed state W's picks are in the first.
  std::vector<Buffer<uint16_t>> up_earlier_, up_later_, down_earlier_, down_later_;
  std::vector<Item> items_;
  std::vector<double> cost_{0.0};
  std::vector<Buffer<T>> expanded_;  // per worker
  std::vector<Buffer<T>> sums_;      // per worker, [channel][depth]
};

}  // namespace ceprop::CEPROP_SET::conv
