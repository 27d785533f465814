// What connections of a network do to tensors: the way up, the way down, the derivative by the weights; with a
// library's convolutions and products, and with poolings by the kernels of this folder.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <utility>
#include <vector>

#include "../model/network.h"
#include "pointwise.h"
#include "tensor_on.h"

namespace ceprop::aten {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// On memory of weights W and biases by connection, and of feedback V; undefined where there is none.
struct Parameters {
  Tensors weights, biases, feedback;
};

template <class T>
const T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T, class Kernels>
class Connections {
 public:
  // `options`: of the tensors.
  Connections(const NetworkShape& shape, const at::TensorOptions& options, bool tf32)
      : shape_(shape), options_(options), tf32_(tf32) {}

  Parameters parameters;  // those that connections go by

  // Of memory like the network's.
  Parameters wrap_all(const std::vector<T*>& weights, const std::vector<T*>& biases,
                      const std::vector<T*>& feedback) const {
    Parameters all;
    for (int c = 0; c < shape_.connection_count(); ++c) {
      const int64_t units = shape_.above(c).channels;
      all.weights.push_back(tensor_on(weights[c], weight_sizes(c), options_));
      all.biases.push_back(biases[c] ? tensor_on(biases[c], {units}, options_) : Tensor());
      if (const int index = at(c).feedback; index >= 0)
        all.feedback.push_back(tensor_on(feedback[index], weight_sizes(c), options_));
    }
    return all;
  }

  // W s + b: of a convolution before its pooling. `by_feedback`: V s.
  Tensor way_up(int c, const Tensor& below, bool by_feedback) const {
    const at::NoTF32Guard exact;
    const Tensor &weight = by_feedback ? parameters.feedback[at(c).feedback] : parameters.weights[c],
                 bias = by_feedback ? Tensor() : parameters.biases[c];
    if (shape_.is_convolution(c)) {
      const Convolution& made = at(c).convolution;
      return at::_convolution(below, weight, bias.defined() ? std::make_optional(bias) : std::nullopt, made.stride,
                              made.padding, {1, 1}, false, {0, 0}, 1, benchmarks, is_deterministic, true, tf32_)
          .contiguous();
    }
    const Tensor sum = dense_product(below.flatten(1), weight);
    return bias.defined() ? sum.add_(bias) : sum;  // at::addmm takes tf32 where the process allows it, guard or not
  }

  // The transpose, of a map that is spread out as it was before its pooling.
  Tensor way_down(int c, const Tensor& above) const {
    const at::NoTF32Guard exact;
    const Tensor& weight = has_feedback(c) ? parameters.feedback[at(c).feedback] : parameters.weights[c];
    const std::vector<int64_t> sizes = shape_.sizes(at(c).below, above.size(0));
    if (!shape_.is_convolution(c)) return dense_product(above.flatten(1), weight.t()).view(sizes);
    const Convolution& made = at(c).convolution;
    int64_t rest[2];  // of the map below, what no kernel reaches
    for (int i = 0; i < 2; ++i)
      rest[i] = sizes[2 + i] - ((above.size(2 + i) - 1) * made.stride[i] - 2 * made.padding[i] + made.kernel[i]);
    return at::_convolution(above, weight, std::nullopt, made.stride, made.padding, {1, 1}, true, rest, 1, benchmarks,
                            is_deterministic, true, tf32_)
        .contiguous();
  }

  // The derivative of  above . (W below)  by W. As a product of matrices: what a library has for this takes its
  // precision and its order of sums from settings of the whole process.
  Tensor correlated(int c, const Tensor& above, const Tensor& below) const {
    const at::NoTF32Guard exact;
    if (!shape_.is_convolution(c)) return at::mm(above.flatten(1).t(), below.flatten(1));
    const Tensor left = above.flatten(2).transpose(0, 1).flatten(1);  // [channels, B * positions]
    return at::mm(left, patches(c, below).t()).view(weight_sizes(c));
  }

  // What is above a connection, spread out to the places that W, or V, picks from what is below.
  Tensor spread(int c, bool by_feedback, const Tensor& below, const Tensor& above) const {
    if (!pools(c)) return above;
    Tensor result;
    const Tensor values = above.contiguous();
    pool(c, picks(c) ? way_up(c, below, by_feedback) : Tensor(), values, nullptr, &result);
    return result;
  }

  // F of what is below, and what goes down before the transpose; null: not wanted. In one pass over the map, where one
  // map tells both.
  void lift(int c, const Tensor& below, const Tensor& above, Tensor* drive, Tensor* goes_down) const {
    const bool shares = goes_down && pools(c) && (!has_feedback(c) || !picks(c));
    if (drive || (shares && picks(c))) {
      const Tensor map = way_up(c, below, false);
      if (pools(c))
        pool(c, map, shares ? above : Tensor(), drive, shares ? goes_down : nullptr);
      else
        *drive = map;
      if (shares) return;
    }
    if (goes_down) *goes_down = spread(c, has_feedback(c), below, above);
  }

  bool has_feedback(int c) const { return at(c).feedback >= 0; }
  // Whether W and V pick maxima, each of its own.
  bool picks(int c) const { return pools(c) && at(c).convolution.pool == Pool::max; }

 private:
  const Connection& at(int c) const { return shape_.connections[c]; }

  // below [B, n] times weight [m, n], transposed. In tf32 as a convolution: at::mm asks settings of the whole process.
  Tensor dense_product(const Tensor& below, const Tensor& weight) const {
    if (!tf32_) return at::mm(below, weight.t());
    const auto as_map = [](const Tensor& matrix) { return matrix.unsqueeze(-1).unsqueeze(-1); };
    return at::_convolution(as_map(below), as_map(weight), std::nullopt, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, 1,
                            benchmarks, is_deterministic, true, true)
        .flatten(1)
        .contiguous();
  }
  bool pools(int c) const { return shape_.is_convolution(c) && at(c).convolution.pool != Pool::none; }

  std::vector<int64_t> weight_sizes(int c) const {
    const MapShape &below = shape_.below(c), above = shape_.above(c);
    if (!shape_.is_convolution(c)) return {above.units(), below.units()};
    const Convolution& made = at(c).convolution;
    return {above.channels, below.channels, made.kernel[0], made.kernel[1]};
  }

  // What lies under the kernel of a connection at each of its positions, [channels * taps, B * positions]. In one copy
  // for the whole batch: at::im2col launches a kernel for each sample.
  Tensor patches(int c, const Tensor& below) const {
    const Convolution& of = at(c).convolution;
    const auto [high, wide] = of.padding;
    const Tensor map = high > 0 || wide > 0 ? at::constant_pad_nd(below, {wide, wide, high, high}) : below;
    return map.unfold(2, of.kernel[0], of.stride[0])
        .unfold(3, of.kernel[1], of.stride[1])
        .permute({1, 4, 5, 0, 2, 3})
        .reshape({below.size(1) * of.kernel[0] * of.kernel[1], -1});
  }

  // A pooling and its transpose. `map`: what maxima are picked from. Null: not wanted.
  void pool(int c, const Tensor& map, const Tensor& values, Tensor* pooled, Tensor* unpooled) const {
    const Convolution& of = at(c).convolution;
    const MapShape &below = shape_.below(c), above = shape_.above(c);
    const auto places = [&](int64_t size, int i) {
      return (size + 2 * of.padding[i] - of.kernel[i]) / of.stride[i] + 1;
    };
    const int64_t height = places(below.height, 0), width = places(below.width, 1);
    const int64_t samples = (map.defined() ? map : values).size(0);
    if (pooled) *pooled = at::empty({samples, above.channels, above.height, above.width}, options_);
    if (unpooled) {
      const bool covers = above.height * of.window[0] == height && above.width * of.window[1] == width;
      const std::vector<int64_t> sizes{samples, above.channels, height, width};
      *unpooled = covers ? at::empty(sizes, options_) : at::zeros(sizes, options_);
    }
    const auto number = [](int64_t value) { return static_cast<int>(value); };
    Kernels::pool(Pooling<T>{.windows = {.pool = of.pool,
                                         .count = samples * above.units(),
                                         .height = number(above.height),
                                         .width = number(above.width),
                                         .window_height = number(of.window[0]),
                                         .window_width = number(of.window[1]),
                                         .map_height = number(height),
                                         .map_width = number(width)},
                             .map = pointer<T>(map),
                             .values = pointer<T>(values),
                             .pooled = pooled ? pooled->template mutable_data_ptr<T>() : nullptr,
                             .unpooled = unpooled ? unpooled->template mutable_data_ptr<T>() : nullptr});
  }

  static constexpr bool benchmarks = false, is_deterministic = true;
  const NetworkShape& shape_;
  const at::TensorOptions options_;
  const bool tf32_;
};

}  // namespace ceprop::aten
