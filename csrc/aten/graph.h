// A network of layers joined in any way, as tensors: its steps and what it learns.
//
// Kernels has pool(Pooling<T>), show(Showing<T>) and move(Move<T>), which enqueue them where the tensors live. Its
// `gains_by_batches` says whether a convolution of twice the batch takes less time there than two; if
// `takes_whole_phases`, it has relax(WholePhase<T>) as well.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../model/gates.h"
#include "../model/learning.h"
#include "connections.h"
#include "whole_phase.h"

namespace ceprop::aten {

// Of every layer, [B, n] or [B, channels, height, width]. A step makes new tensors; none is changed.
struct States {
  Tensors state;
  Tensors seen;            // firing rates: rho(state) in energy dynamics, else the same tensors
  bool both_ways = false;  // of the batch twice: a nudge pulls the second half the other way
};

// Each sample twice, to be nudged both ways at once.
inline States both_ways(const States& states) {
  const auto twice = [](const Tensors& of) {
    Tensors result;
    for (const Tensor& one : of) result.push_back(at::cat({one, one}));
    return result;
  };
  States result{twice(states.state), {}, true};
  const bool shows_itself = states.seen[0].is_same(states.state[0]);
  result.seen = shows_itself ? result.state : twice(states.seen);
  return result;
}
// Those of one way of states that are nudged both ways.
inline States one_way(const States& states, int way) {
  const auto half = [way](const Tensors& of) {
    Tensors result;
    for (const Tensor& one : of) result.push_back(one.chunk(2)[way]);
    return result;
  };
  return {half(states.state), half(states.seen)};
}

// Of a gate, rho' by connection: of the layer above for W and b, of the layer below for V. Empty without a gate.
struct Slopes {
  Tensors above, below;
};

// What Between of the model numbers: the states that a contrast is taken between, the fixed ones, and what multiplies
// the differences.
struct Ends {
  const States &earlier, &later, &fixed;
  const Slopes& slopes;
};

// What sample_error() of the model computes of each sample, by torch's operators; for every loss of samples one. Of the
// target [B, classes] and logits [ways, B, classes].
inline Tensor cross_entropy_error(const Tensor& target, const Tensor& logits) {
  return target - at::softmax(logits, 2);
}

template <class T, class Kernels>
class Graph {
 public:
  // `options`: of the tensors whose memory the network and the batch point to.
  // `largest`: of inputs, targets and states, see model/largest.h.
  Graph(const Network<T>& network, const Batch<T>& batch, const at::TensorOptions& options, bool tf32, T largest)
      : connections(network.shape, options, tf32),
        broken(at::zeros({1}, options.dtype(at::kInt))),
        network_(network),
        shape_(network.shape),
        batch_(batch.size),
        options_(options),
        largest_(largest),
        arriving_(shape_.layer_count()),
        leaving_(shape_.layer_count()) {
    forget_input();
    connections.parameters = connections.wrap_all(network.weights, network.biases, network.feedback);
    for (int c = 0; c < inner_count(); ++c) {
      arriving_[at(c).above].push_back(c);
      if (at(c).below != from_input) leaving_[at(c).below].push_back(c);
    }
    look(x_ = wrap(batch.x, shape_.sizes(from_input, batch_)));
    if (is_energy()) x_ = shown(network.input_activation, x_, false);
    if (batch.target) look(target_ = wrap(batch.target, {batch_, shape_.classes}));
  }

  Connections<T, Kernels> connections;
  const Tensor broken;  // [1], not 0 if a number was none or too large: what has been learnt then is to be forgotten

  // How many connections are inside the dynamics; a readout comes after them.
  int inner_count() const { return shape_.connection_count() - shape_.has_readout(); }

  void look(const Tensor& numbers) const { broken.bitwise_or_(numbers.abs().le(largest_).all().logical_not()); }

  Tensor wrap(const T* memory, at::IntArrayRef sizes) const { return tensor_on(memory, sizes, options_); }
  // What every layer starts from, [B, n_l] each; none: zeros.
  States start(const std::vector<const T*>& initial) const {
    States states;
    for (int l = 0; l < shape_.layer_count(); ++l) {
      const std::vector<int64_t> sizes = shape_.sizes(l, batch_);
      states.state.push_back(initial.empty() ? at::zeros(sizes, options_) : wrap(initial[l], sizes).clone());
      states.seen.push_back(is_energy() ? shown(network_.rules[l].activation, states.state[l], false)
                                        : states.state[l]);
    }
    return states;
  }

  // The error of a loss of samples, [B, classes], at the logits: the states of the output layer, or those of a readout.
  Tensor error(Loss loss, const States& states) const {
    const Tensor& output = states.state[shape_.output];
    const Tensor read = shape_.has_readout() ? connections.way_up(inner_count(), output, false) : output;
    const Tensor logits = read.flatten(1).unflatten(0, {-1, batch_});
#define CEPROP_ERROR(name) \
  if (loss == Loss::name) return name##_error(target_, logits).flatten(0, 1);
    CEPROP_SAMPLE_LOSSES(CEPROP_ERROR)
#undef CEPROP_ERROR
    return Tensor();
  }

  // One step, nudged by `nudge.beta` if that is not 0, both ways if these states are. `moves` [1], if defined, becomes
  // 1 where a unit moves by more than `limit`. `slopes`, of a gate, become those at the drives by which the units move.
  States step(const States& from, const Nudge& nudge, T limit, const Tensor& moves, Gate gate, Slopes& slopes) {
    States to = from;
    if (gate != Gate::none) slopes = empty_slopes();
    for (const std::vector<int>& turn : shape_.turns) move(turn, States(to), to, nudge, limit, moves, gate, slopes);
    return to;
  }

  // `count` steps at once, of a chain that Kernels::relax() takes, whose weights rest. `moves` is of the last of them.
  States whole_steps(const States& from, int count, const Nudge& nudge, T limit, const Tensor& moves) {
    States to{{}, {}, from.both_ways};
    WholePhase<T> phase{.network = network_,
                        .batch = batch_,
                        .both_ways = from.both_ways,
                        .drive = pointer<T>(input_drive(0, from.both_ways)),
                        .target = pointer<T>(target_),
                        .nudge = nudge,
                        .steps = count,
                        .limit = limit,
                        .moves = moves.defined() ? moves.mutable_data_ptr<int>() : nullptr,
                        .largest = largest_,
                        .broken = broken.mutable_data_ptr<int>()};
    for (int l = 0; l < shape_.layer_count(); ++l) {
      phase.weights.push_back(pointer<T>(connections.parameters.weights[l]));
      phase.biases.push_back(pointer<T>(connections.parameters.biases[l]));
      phase.state.push_back(pointer<T>(from.state[l]));
      phase.seen.push_back(pointer<T>(from.seen[l]));
      to.state.push_back(at::empty_like(from.state[l]));
      to.seen.push_back(is_energy() ? at::empty_like(from.state[l]) : to.state[l]);
      phase.next.push_back(to.state[l].template mutable_data_ptr<T>());
      phase.next_seen.push_back(is_energy() ? to.seen[l].template mutable_data_ptr<T>() : nullptr);
    }
    Kernels::relax(phase);
    return to;
  }

  // The slopes at the drives of these states themselves, without a nudge.
  Slopes slopes_at(const States& states, Gate gate) {
    if (gate == Gate::none) return {};
    Slopes slopes = empty_slopes();
    std::vector<int> all(shape_.layer_count());
    std::iota(all.begin(), all.end(), 0);
    States forgotten = states;
    move(all, states, forgotten, Nudge{}, T(0), Tensor(), gate, slopes);
    return slopes;
  }

  // Weights have moved, those from the input among them: its drives are others.
  void forget_input() { input_drives_[0] = input_drives_[1] = Tensors(shape_.connection_count()); }

  // Sums over the batch of what a copy of the weights of connection c learns from, shaped like them; model/learning.h
  // has the terms.
  Tensor contrast(int c, Copy copy, Learns learns, const Ends& ends) const {
    const int above = at(c).above, below = at(c).below;
    const Terms terms = terms_of(learns, below == from_input, copy);
    const bool by_feedback = copy == Copy::feedback;
    const Tensors &later = moved(ends.later, learns), &earlier = moved(ends.earlier, learns);
    if (!terms.below_moves) {  // one map below, and one choice of maxima
      const Tensor& map = below == from_input ? x_ : ends.fixed.seen[below];
      return connections.correlated(c, connections.spread(c, by_feedback, map, above_moved(c, learns, ends)), map);
    }
    const Tensor &above_later = terms.above_moves ? later[above] : ends.fixed.seen[above],
                 &above_earlier = terms.above_moves ? earlier[above] : ends.fixed.seen[above];
    const Tensor up_later = connections.spread(c, by_feedback, later[below], above_later),
                 up_earlier = connections.spread(c, by_feedback, earlier[below], above_earlier);
    const Tensors& slopes = ends.slopes.below;
    const Tensor by_below = connections.correlated(c, up_earlier, gated(slopes, c, later[below] - earlier[below]));
    if (up_later.is_same(up_earlier)) return by_below;
    return by_below.add_(connections.correlated(c, up_later - up_earlier, gated(slopes, c, later[below])));
  }
  // The same for its bias.
  Tensor bias_contrast(int c, Learns learns, const Ends& ends) const {
    const Tensor change = above_moved(c, learns, ends);
    return change.dim() > 2 ? change.sum({0, 2, 3}) : change.sum(0);
  }

  // Of a readout, by the error at these states.
  Tensor readout_contrast(const Tensor& error, const States& states) const {
    return connections.correlated(inner_count(), error, states.state[shape_.output]);
  }

 private:
  const Connection& at(int c) const { return shape_.connections[c]; }
  bool is_energy() const { return network_.rules[0].dynamics == Dynamics::energy; }

  static const Tensors& moved(const States& states, Learns learns) {
    return moves_states(learns) ? states.state : states.seen;
  }
  static Tensor gated(const Tensors& slopes, int c, const Tensor& moved) {
    return slopes.empty() ? moved : moved * slopes[c];
  }
  Tensor above_moved(int c, Learns learns, const Ends& ends) const {
    const Tensor change = moved(ends.later, learns)[at(c).above] - moved(ends.earlier, learns)[at(c).above];
    return gated(ends.slopes.above, c, change);
  }

  // rho, or rho', where no move computes it.
  Tensor shown(Activation activation, const Tensor& from, bool is_slope) const {
    const Tensor result = at::empty_like(from);
    Kernels::show(
        Showing<T>{activation, is_slope, from.numel(), from.const_data_ptr<T>(), result.mutable_data_ptr<T>()});
    return result;
  }

  Slopes empty_slopes() const { return {Tensors(inner_count()), Tensors(inner_count())}; }

  // The layers of a turn, from the states `now`, into `to`.
  void move(const std::vector<int>& turn, const States& now, States& to, const Nudge& nudge, T limit,
            const Tensor& moves, Gate gate, Slopes& slopes) {
    std::vector<bool> is_in(shape_.layer_count());
    for (const int l : turn) is_in[l] = true;
    Tensors up(inner_count()), down(inner_count());  // what reaches the layer above, and the one below
    for (int c = 0; c < inner_count(); ++c) {
      const int above = at(c).above, below = at(c).below;
      if (below == from_input) {
        if (is_in[above]) up[c] = input_drive(c, now.both_ways);
        continue;
      }
      Tensor goes_down;
      connections.lift(c, now.seen[below], now.seen[above], is_in[above] ? &up[c] : nullptr,
                       is_in[below] ? &goes_down : nullptr);
      if (is_in[below]) down[c] = connections.way_down(c, goes_down);
    }
    for (const int l : turn) {
      Tensor above = sum_of(down, leaving_[l]), pull;
      if (l == shape_.output && nudge.beta != 0) {
        pull = is_of_units(nudge.loss) ? target_ : error(nudge.loss, now).mul_(nudge.beta);
        if (now.both_ways && !is_of_units(nudge.loss)) pull.chunk(2)[1].neg_();
        if (shape_.has_readout()) {
          above = connections.way_down(inner_count(), pull);
          pull = Tensor();
        }
      }
      const Tensor below = sum_of(up, arriving_[l]);
      const auto fresh = [&] { return at::empty_like(now.state[l]); };
      const Tensor whole = gate == Gate::unit ? fresh() : Tensor();
      to.state[l] = fresh();
      to.seen[l] = is_energy() ? fresh() : to.state[l];
      // `count` units from the first one on, by target or error from the beginning.
      const auto enqueue = [&](const Nudge& by, int64_t first, int64_t count) {
        const auto from = [first](const Tensor& of) { return of.defined() ? of.const_data_ptr<T>() + first : nullptr; };
        const auto into = [first](const Tensor& of) {
          return of.defined() ? of.mutable_data_ptr<T>() + first : nullptr;
        };
        Kernels::move(Move<T>{.rule = network_.rules[l],
                              .count = count,
                              .below = from(below),
                              .above = from(above),
                              .state = from(now.state[l]),
                              .pull = pointer<T>(pull),
                              .nudge = by,
                              .next = into(to.state[l]),
                              .seen = is_energy() ? into(to.seen[l]) : nullptr,
                              .slopes = into(whole),
                              .limit = limit,
                              .moves = moves.defined() ? moves.mutable_data_ptr<int>() : nullptr,
                              .largest = largest_,
                              .broken = broken.mutable_data_ptr<int>()});
      };
      const int64_t units = to.state[l].numel();
      if (now.both_ways && pull.defined() && is_of_units(nudge.loss)) {
        enqueue(nudge, 0, units / 2);
        enqueue({-nudge.beta, nudge.at, nudge.loss}, units / 2, units / 2);
      } else {
        enqueue(nudge, 0, units);
      }
      if (gate == Gate::none) continue;
      const auto slope = [&](const Tensor& part) {
        return whole.defined() ? whole : shown(network_.rules[l].activation, part, true);
      };
      for (const int c : arriving_[l]) slopes.above[c] = slope(up[c]);
      for (const int c : leaving_[l]) slopes.below[c] = slope(down[c]);
    }
  }

  // F of the input, or twice, computed once while weights rest.
  const Tensor& input_drive(int c, bool twice) {
    Tensor& drive = input_drives_[twice][c];
    if (!drive.defined() && twice)
      drive = at::cat({input_drive(c, false), input_drive(c, false)});
    else if (!drive.defined())
      connections.lift(c, x_, {}, &drive, nullptr);
    return drive;
  }

  // Of what these connections bring; undefined if there are none.
  static Tensor sum_of(const Tensors& parts, const std::vector<int>& brought_by) {
    Tensor sum;
    for (size_t i = 0; i < brought_by.size(); ++i) {
      const Tensor& part = parts[brought_by[i]];
      if (i < 2)
        sum = i == 0 ? part : sum + part;
      else
        sum.add_(part);
    }
    return sum;
  }

  const Network<T>& network_;
  const NetworkShape& shape_;
  const int64_t batch_;
  const at::TensorOptions options_;
  const T largest_;
  std::vector<std::vector<int>> arriving_, leaving_;  // connections by layer: that end there; that start there
  Tensor x_, target_;
  Tensors input_drives_[2];  // of the batch, and of it twice; undefined where not from the input, or not known
};

}  // namespace ceprop::aten
