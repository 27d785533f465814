// A chain of layers as tensors: its steps and what it learns, with a library's convolutions and products and the
// kernels of this folder around them.
//
// Kernels has pool(Pooling<T>), show(Showing<T>) and move(Move<T>), which enqueue them where the tensors live.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "../model/learning.h"
#include "../model/network.h"
#include "pointwise.h"
#include "tensor_on.h"

namespace ceprop::aten {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// Of every layer, [B, n] or [B, channels, height, width]. A step makes new tensors; none is changed.
struct Field {
  Tensors state;
  Tensors seen;  // rho(state) in energy dynamics, else the same tensors
};

// Tensors on the memory of weights W, biases and feedback V[1], V[2], ...; undefined where there is none.
struct Parameters {
  Tensors weights, biases, feedback;
};

// What Between of the model numbers: the states that a contrast is taken between, and the fixed ones.
struct Ends {
  const Field &earlier, &later, &fixed;
};

template <class T, class Kernels>
class Chain {
 public:
  // `options`: of the tensors whose memory the network and the batch point to.
  // `largest`: of inputs, targets and states, see model/largest.h.
  Chain(const Network<T>& network, const Batch<T>& batch, const at::TensorOptions& options, bool tf32, T largest)
      : broken(at::zeros({1}, options.dtype(at::kInt))),
        network_(network),
        batch_(batch.size),
        options_(options),
        tf32_(tf32),
        largest_(largest) {
    parameters = wrap_all(network.weights, network.biases, network.feedback);
    x_ = wrap(batch.x, map_sizes(0));
    look(x_);
    if (is_energy()) x_ = emitted(network.input_activation, x_);
    if (batch.target) look(target_ = wrap(batch.target, {batch_, network.shape.classes}));
  }

  Parameters parameters;  // the network's own
  const Tensor broken;    // [1], not 0 if a number was none or too large: what has been learnt then is to be forgotten

  void look(const Tensor& numbers) const { broken.bitwise_or_(numbers.abs().le(largest_).all().logical_not()); }

  // Of memory like the network's.
  Parameters wrap_all(const std::vector<T*>& weights, const std::vector<T*>& biases,
                      const std::vector<T*>& feedback) const {
    Parameters all;
    for (size_t c = 0; c < weights.size(); ++c) {
      const int connection = static_cast<int>(c);
      all.weights.push_back(wrap(weights[c], weight_sizes(connection)));
      all.biases.push_back(biases[c] ? wrap(biases[c], {network_.shape.above(connection).channels}) : Tensor());
      if (c > 0 && c <= feedback.size()) all.feedback.push_back(wrap(feedback[c - 1], weight_sizes(connection)));
    }
    return all;
  }
  Tensor wrap(const T* memory, at::IntArrayRef sizes) const { return tensor_on(memory, sizes, options_); }
  // What every layer starts from, [B, n_l] each; none: zeros.
  Field start(const std::vector<const T*>& initial) const {
    Field field;
    for (int l = 0; l < network_.shape.layer_count(); ++l)
      field.state.push_back(initial.empty() ? at::zeros(state_sizes(l), options_)
                                            : wrap(initial[l], state_sizes(l)).clone());
    for (int l = 0; l < network_.shape.layer_count(); ++l)
      field.seen.push_back(is_energy() ? emitted(network_.rules[l].activation, field.state[l]) : field.state[l]);
    return field;
  }

  // y - softmax of the logits, [B, classes]: of the states of the output layer, or of a readout.
  Tensor error(const Field& field) const {
    const Tensor& top = field.state.back();
    const Tensor logits = network_.shape.has_readout() ? way_up(network_.shape.layer_count(), top, false) : top;
    return target_ - at::softmax(logits.flatten(1), 1);
  }

  // One step from a field, nudged by `nudge.beta` if that is not 0. `moves` [1], if defined, becomes 1 where a unit
  // moves by more than `limit`.
  Field step(const Field& from, const Nudge& nudge, T limit, const Tensor& moves) {
    Field to = from;
    const int halves = network_.shape.turn_count();
    for (int half = 0; half < halves; ++half) {
      const Field now = to;
      Tensors drives(network_.shape.layer_count()),
          spreads(network_.shape.layer_count());  // of a connection: its way up; what goes down
      for (int c = 0; c < network_.shape.layer_count(); ++c) {
        const bool drives_above = c % halves == half, goes_down = c > 0 && (c - 1) % halves == half;
        lift(c, now, drives_above ? &drives[c] : nullptr, goes_down ? &spreads[c] : nullptr);
      }
      for (int l = half; l < network_.shape.layer_count(); l += halves) {
        const bool is_top = l + 1 == network_.shape.layer_count();
        Tensor above, pull;
        if (!is_top) {
          above = way_down(l + 1, spreads[l + 1]);
        } else if (nudge.beta != 0) {
          pull = is_of_units(nudge.loss) ? target_ : error(now).mul_(nudge.beta);
          if (network_.shape.has_readout()) {
            above = way_down(l + 1, pull);
            pull = Tensor();
          }
        }
        to.state[l] = at::empty(state_sizes(l), options_);
        to.seen[l] = is_energy() ? at::empty(state_sizes(l), options_) : to.state[l];
        Kernels::move(Move<T>{.rule = network_.rules[l],
                              .count = to.state[l].numel(),
                              .below = drives[l].template const_data_ptr<T>(),
                              .above = pointer(above),
                              .state = now.state[l].template const_data_ptr<T>(),
                              .pull = pointer(pull),
                              .nudge = nudge,
                              .next = to.state[l].template mutable_data_ptr<T>(),
                              .seen = is_energy() ? to.seen[l].template mutable_data_ptr<T>() : nullptr,
                              .limit = limit,
                              .moves = moves.defined() ? moves.mutable_data_ptr<int>() : nullptr,
                              .largest = largest_,
                              .broken = broken.mutable_data_ptr<int>()});
      }
    }
    return to;
  }

  // The weights into layer 0 have moved: its drive is another.
  void forget_input() { input_drive_ = Tensor(); }

  // Sums over the batch of what a copy of the weights of connection c learns from, shaped like them; model/learning.h
  // has the terms.
  Tensor contrast(int c, Copy copy, Learns learns, const Ends& ends) const {
    const Terms terms = terms_of(learns, c == 0, copy);
    const bool by_feedback = copy == Copy::feedback;
    const Tensors &later = moved(ends.later, learns), &earlier = moved(ends.earlier, learns);
    if (!terms.below_moves) {  // one map below, and one choice of maxima
      const Tensor& below = c == 0 ? x_ : ends.fixed.seen[c - 1];
      return correlated(c, spread(c, by_feedback, below, later[c] - earlier[c]), below);
    }
    const Tensor &above_later = terms.above_moves ? later[c] : ends.fixed.seen[c],
                 &above_earlier = terms.above_moves ? earlier[c] : ends.fixed.seen[c];
    const Tensor up_later = spread(c, by_feedback, later[c - 1], above_later),
                 up_earlier = spread(c, by_feedback, earlier[c - 1], above_earlier);
    const Tensor by_below = correlated(c, up_earlier, later[c - 1] - earlier[c - 1]);
    if (up_later.is_same(up_earlier)) return by_below;
    return by_below.add_(correlated(c, up_later - up_earlier, later[c - 1]));
  }
  // The same for its bias.
  Tensor bias_contrast(int c, Learns learns, const Ends& ends) const {
    const Tensor change = moved(ends.later, learns)[c] - moved(ends.earlier, learns)[c];
    return change.dim() > 2 ? change.sum({0, 2, 3}) : change.sum(0);
  }

  // Of a readout, by the error at the states in `field`.
  Tensor readout_contrast(const Tensor& error, const Field& field) const {
    return correlated(network_.shape.layer_count(), error, field.state.back());
  }

  // Whether W and V choose maxima of their own, so that even shared updates have two contrasts.
  bool chooses_twice(int c) const { return is_convolution(c) && made(c).pool == Pool::max; }

 private:
  static const Tensors& moved(const Field& field, Learns learns) {
    return moves_states(learns) ? field.state : field.seen;
  }
  std::vector<int64_t> weight_sizes(int c) const {
    const MapShape below = network_.shape.below(c), above = network_.shape.above(c);
    if (!is_convolution(c)) return {above.units(), below.units()};
    return {above.channels, below.channels, made(c).kernel[0], made(c).kernel[1]};
  }
  std::vector<int64_t> state_sizes(int layer) const { return map_sizes(layer + 1); }

  bool is_energy() const { return network_.rules[0].dynamics == Dynamics::energy; }
  bool is_convolution(int c) const { return network_.shape.is_convolution(c); }
  const Convolution& made(int c) const { return network_.shape.connections[c].convolution; }
  static const T* pointer(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr; }

  std::vector<int64_t> map_sizes(int m) const {
    const MapShape& map = m == 0 ? network_.shape.input : network_.shape.layers[m - 1];
    if (network_.shape.is_convolution(std::max(m - 1, 0))) return {batch_, map.channels, map.height, map.width};
    return {batch_, map.units()};
  }

  // rho(state), where no step computes it.
  Tensor emitted(Activation activation, const Tensor& state) const {
    const Tensor seen = at::empty_like(state);
    Kernels::show(Showing<T>{activation, state.numel(), state.const_data_ptr<T>(), seen.mutable_data_ptr<T>()});
    return seen;
  }

  // ---- a library's convolutions and products ----

  Tensor convolved(int c, const Tensor& weight, const Tensor& bias, const Tensor& below) const {
    return at::_convolution(below, weight, bias.defined() ? std::make_optional(bias) : std::nullopt, made(c).stride,
                            made(c).padding, {1, 1}, false, {0, 0}, 1, benchmarks, is_deterministic, true, tf32_)
        .contiguous();
  }

  // W s + b: of a convolution before its pooling.
  Tensor way_up(int c, const Tensor& below, bool by_feedback) const {
    const at::NoTF32Guard exact;
    const Tensor &weight = by_feedback ? parameters.feedback[c - 1] : parameters.weights[c],
                 bias = by_feedback ? Tensor() : parameters.biases[c];
    if (is_convolution(c)) return convolved(c, weight, bias, below);
    const Tensor flat = below.flatten(1);
    const Tensor sum = at::mm(flat, weight.t());
    return bias.defined() ? sum.add_(bias) : sum;  // at::addmm takes tf32 where the process allows it, guard or not
  }

  // The transpose, of a map that is spread out as it was before its pooling.
  Tensor way_down(int c, const Tensor& above) const {
    const at::NoTF32Guard exact;
    const bool by_feedback = network_.free_feedback && c < network_.shape.layer_count();
    const Tensor& weight = by_feedback ? parameters.feedback[c - 1] : parameters.weights[c];
    if (!is_convolution(c)) return at::mm(above.flatten(1), weight);
    const MapShape& below = network_.shape.below(c);
    const int64_t sizes[2] = {below.height, below.width};
    int64_t rest[2];  // of the map below, what no kernel reaches
    for (int i = 0; i < 2; ++i)
      rest[i] = sizes[i] - ((above.size(2 + i) - 1) * made(c).stride[i] - 2 * made(c).padding[i] + made(c).kernel[i]);
    return at::_convolution(above, weight, std::nullopt, made(c).stride, made(c).padding, {1, 1}, true, rest, 1,
                            benchmarks, is_deterministic, true, tf32_)
        .contiguous();
  }

  // The derivative of  above . (W below)  by W. As a product of matrices: what a library has for this takes its
  // precision and its order of sums from settings of the whole process.
  Tensor correlated(int c, const Tensor& above, const Tensor& below) const {
    const at::NoTF32Guard exact;
    if (!is_convolution(c)) return at::mm(above.flatten(1).t(), below.flatten(1));
    const Tensor left = above.flatten(2).transpose(0, 1).flatten(1);  // [channels, B * positions]
    return at::mm(left, patches(c, below).t()).view(weight_sizes(c));
  }

  // What lies under the kernel of connection c at each of its positions, [channels * taps, B * positions]. In one copy
  // for the whole batch: at::im2col launches a kernel for each sample.
  Tensor patches(int c, const Tensor& below) const {
    const Convolution& of = made(c);
    const auto [high, wide] = of.padding;
    const Tensor map = high > 0 || wide > 0 ? at::constant_pad_nd(below, {wide, wide, high, high}) : below;
    return map.unfold(2, of.kernel[0], of.stride[0])
        .unfold(3, of.kernel[1], of.stride[1])
        .permute({1, 4, 5, 0, 2, 3})
        .reshape({below.size(1) * of.kernel[0] * of.kernel[1], -1});
  }

  // ---- pooling, and its transpose ----

  bool pools(int c) const { return is_convolution(c) && made(c).pool != Pool::none; }

  // `map`: what maxima are picked from. Null: not wanted.
  void pool(int c, const Tensor& map, const Tensor& values, Tensor* pooled, Tensor* unpooled) const {
    const Convolution& of = made(c);
    const MapShape below = network_.shape.below(c), above = network_.shape.above(c);
    const auto places = [&](int64_t size, int i) {
      return (size + 2 * of.padding[i] - of.kernel[i]) / of.stride[i] + 1;
    };
    const int64_t height = places(below.height, 0), width = places(below.width, 1);
    if (pooled) *pooled = at::empty({batch_, above.channels, above.height, above.width}, options_);
    if (unpooled) {
      const bool covers = above.height * of.window[0] == height && above.width * of.window[1] == width;
      const std::vector<int64_t> sizes{batch_, above.channels, height, width};
      *unpooled = covers ? at::empty(sizes, options_) : at::zeros(sizes, options_);
    }
    const auto number = [](int64_t value) { return static_cast<int>(value); };
    Kernels::pool(Pooling<T>{.windows = {.pool = of.pool,
                                         .count = batch_ * above.units(),
                                         .height = number(above.height),
                                         .width = number(above.width),
                                         .window_height = number(of.window[0]),
                                         .window_width = number(of.window[1]),
                                         .map_height = number(height),
                                         .map_width = number(width)},
                             .map = pointer(map),
                             .values = pointer(values),
                             .pooled = pooled ? pooled->template mutable_data_ptr<T>() : nullptr,
                             .unpooled = unpooled ? unpooled->template mutable_data_ptr<T>() : nullptr});
  }

  // What is above connection c, spread out to the places that W, or V, picks from what is below.
  Tensor spread(int c, bool by_feedback, const Tensor& below, const Tensor& above) const {
    if (!pools(c)) return above;
    Tensor result;
    const Tensor values = above.contiguous();
    pool(c, made(c).pool == Pool::max ? way_up(c, below, by_feedback) : Tensor(), values, nullptr, &result);
    return result;
  }

  // Of connection c, F_c of what is below, and what goes down it before the transpose; null: not wanted. In one pass
  // over the map, where one map tells both.
  void lift(int c, const Field& field, Tensor* drive, Tensor* goes_down) {
    if (c == 0) {
      if (drive && !input_drive_.defined()) {
        input_drive_ = way_up(0, x_, false);
        if (const Tensor map = input_drive_; pools(0)) pool(0, map, {}, &input_drive_, nullptr);
      }
      if (drive) *drive = input_drive_;
      return;
    }
    const Tensor &below = field.seen[c - 1], &above = field.seen[c];
    const bool shares = goes_down && pools(c) && (!network_.free_feedback || made(c).pool == Pool::avg);
    if (drive || (shares && made(c).pool == Pool::max)) {
      const Tensor map = way_up(c, below, false);
      if (pools(c))
        pool(c, map, shares ? above : Tensor(), drive, shares ? goes_down : nullptr);
      else
        *drive = map;
      if (shares) return;
    }
    if (goes_down) *goes_down = spread(c, network_.free_feedback, below, above);
  }

  static constexpr bool benchmarks = false, is_deterministic = true;
  const Network<T>& network_;
  const int64_t batch_;
  const at::TensorOptions options_;
  const bool tf32_;
  const T largest_;
  Tensor x_, target_, input_drive_;
};

}  // namespace ceprop::aten
