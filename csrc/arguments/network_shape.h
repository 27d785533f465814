// This makes the shape of a network from the arguments of an op, for every device alike: which layers there are, and
// how they are joined. It checks that the weights fit, and trusts no number.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../model/network.h"
#include "checks.h"

namespace ceprop {

// See library.cpp.
struct StructureArguments {
  at::IntArrayRef strides, paddings;
  std::string_view pools;
  at::IntArrayRef windows, joined, turns;
};

inline std::string name_of_layer(int layer) {
  return layer == from_input ? "the input" : "layer " + std::to_string(layer);
}

// This says which layers the connections join, a readout's among them. It holds of a shape the connections, the number
// of layers and the output; nothing else is known yet.
class Joints {
 public:
  Joints(size_t connections, bool readout, at::IntArrayRef joined) {
    const int inner = static_cast<int>(connections) - readout;
    if (joined.empty()) {
      for (int c = 0; c < inner; ++c) joints_.push_back({c - 1, c, Kind::dense, {}});
    } else {
      check_count("joined", joined.size(), 2 * static_cast<size_t>(inner),
                  "numbers, two per connection but a readout's, or none");
      for (int c = 0; c < inner; ++c) joints_.push_back(joint(c, joined));
    }
    for (const Connection& one : joints_) layers_ = std::max(layers_, one.above + 1);
    check_ends();
    find_depths();
    if (readout) joints_.push_back({output_, layers_, Kind::readout, {}});
  }

  const std::vector<Connection>& connections() const { return joints_; }
  int layers() const { return layers_; }
  int output() const { return output_; }

  // Returns the words for a connection.
  std::string name(int c) const {
    const Connection& one = joints_[c];
    const std::string above = one.kind == Kind::readout ? "the readout" : name_of_layer(one.above);
    return c10::str(element("weights", c), " (", name_of_layer(one.below), " -> ", above, ")");
  }

  // Returns the connections in an order in which each comes after all that end at the layer below it.
  std::vector<int> from_the_input_on() const {
    std::vector<int> order(count());
    for (int c = 0; c < count(); ++c) order[c] = c;
    const auto depth = [&](int c) { return joints_[c].below == from_input ? 0 : depths_[joints_[c].below]; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return depth(a) < depth(b); });
    return order;
  }

  // Returns all layers at once, or first those at an odd depth, of a chain layers 0, 2, ..., then those at an even one.
  std::vector<std::vector<int>> scheduled_turns(bool asynchronous) const {
    std::vector<std::vector<int>> turns(asynchronous && layers_ > 1 ? 2 : 1);
    for (int l = 0; l < layers_; ++l) turns[(depths_[l] - 1) % turns.size()].push_back(l);
    return turns;
  }

 private:
  int count() const { return static_cast<int>(joints_.size()); }

  // Layers have numbers below that of the connections, as one ends at each.
  static Connection joint(int c, at::IntArrayRef joined) {
    const int64_t below = joined[2 * c], above = joined[2 * c + 1], most = static_cast<int64_t>(joined.size()) / 2 - 1;
    const auto check = [&](size_t at, int64_t least) {
      TORCH_CHECK_VALUE(joined[at] >= least && joined[at] <= most, element("joined", at), " must lie in ", least,
                        " .. ", most, least < 0 ? ", where -1 is the input" : "", ", got ", joined[at]);
    };
    check(2 * c, from_input);
    check(2 * c + 1, 0);
    TORCH_CHECK_VALUE(below != above, element("weights", c), " must join two layers, but joined says layer ", below,
                      " to itself");
    return {static_cast<int>(below), static_cast<int>(above), Kind::dense, {}};
  }

  void check_ends() {
    std::vector<int> arriving(layers_), leaving(layers_);
    for (int c = 0; c < count(); ++c) {
      ++arriving[joints_[c].above];
      TORCH_CHECK_VALUE(joints_[c].below < layers_, name(c), " starts at a layer at which no connection ends");
      if (joints_[c].below != from_input) ++leaving[joints_[c].below];
    }
    for (int l = 0; l < layers_; ++l)
      TORCH_CHECK_VALUE(arriving[l] > 0, "joined must have a connection that ends at layer ", l, ", as there is layer ",
                        layers_ - 1);
    for (int l = 0; l < layers_; ++l) {
      if (leaving[l] > 0) continue;
      TORCH_CHECK_VALUE(output_ < 0, "joined must leave one layer at which no connection starts, the output, got ",
                        "layers ", output_, " and ", l);
      output_ = l;
    }
  }

  // Returns of each layer the number of connections on the longest path from the input. Where there is no ring, no path
  // is longer than the number of layers.
  void find_depths() {
    depths_.assign(layers_, 0);
    int closing = 0;
    for (int round = 0; round <= layers_ && closing >= 0; ++round) {
      closing = -1;
      for (int c = 0; c < count(); ++c) {
        const Connection& one = joints_[c];
        const int depth = 1 + (one.below == from_input ? 0 : depths_[one.below]);
        if (depth <= depths_[one.above]) continue;
        depths_[one.above] = depth;
        closing = c;
      }
    }
    TORCH_CHECK_VALUE(closing < 0, name(std::max(closing, 0)),
                      " is part of a ring, or above one, in which no layer comes first");
  }

  std::vector<Connection> joints_;
  int layers_ = 0, output_ = -1;
  std::vector<int> depths_;
};

// Returns how connection c is made if it is a convolution, all but its kernel, and nothing for a dense one.
inline std::optional<Convolution> check_letter(int c, const StructureArguments& arguments) {
  constexpr std::pair<const char*, std::optional<Pool>> choices[] = {
      {"m", Pool::max}, {"a", Pool::avg}, {"i", Pool::none}, {"d", std::nullopt}};
  const auto letter = parse("a letter of pools", arguments.pools.substr(c, 1), choices);
  if (!letter) return {};
  const auto pair = [&](at::IntArrayRef of) { return std::array<int64_t, 2>{of[2 * c], of[2 * c + 1]}; };
  const std::array<int64_t, 2> window = *letter == Pool::none ? std::array<int64_t, 2>{1, 1} : pair(arguments.windows);
  const Convolution made{{}, pair(arguments.strides), pair(arguments.paddings), window, *letter};
  TORCH_CHECK_VALUE(made.places() <= UINT16_MAX, "windows must have at most ", UINT16_MAX, " places, got ", window[0],
                    " x ", window[1]);
  return made;
}

// Notes which connections are convolutions, and how they are made but for their kernels.
inline void check_convolutions(NetworkShape& shape, const Joints& joints, const StructureArguments& arguments) {
  const size_t count = arguments.pools.size(), inner = shape.connections.size() - shape.has_readout();
  TORCH_CHECK_VALUE(count <= inner, "pools must hold at most ", inner, " letters, one per connection but a readout's, ",
                    "got ", count);
  for (const auto& [name, given, least] : {std::tuple{"strides", arguments.strides, 1},
                                           {"paddings", arguments.paddings, 0},
                                           {"windows", arguments.windows, 1}}) {
    check_count(name, given.size(), 2 * count, "numbers, two per letter of pools");
    for (size_t i = 0; i < given.size(); ++i)
      TORCH_CHECK_VALUE(given[i] >= least && given[i] <= INT16_MAX, element(name, i), " must lie in ", least, " .. ",
                        INT16_MAX, ", got ", given[i]);
  }
  for (size_t c = 0; c < count; ++c)
    if (const auto made = check_letter(static_cast<int>(c), arguments)) {
      shape.connections[c].kind = Kind::convolution;
      shape.connections[c].convolution = *made;
      TORCH_CHECK_VALUE(shape.has_readout() || shape.connections[c].above != shape.output, joints.name(c),
                        " ends at the output, so it must be dense, got a convolution");
    }
}

// Returns what is above connection c, whose weight fits what is below it, and notes its kernel.
inline MapShape check_weight(NetworkShape& shape, const Joints& joints, int c, const at::Tensor& weight,
                             const at::Tensor& x) {
  const MapShape& below = shape.below(c);
  const int64_t units = weight.dim() >= 1 ? weight.size(0) : 0;
  if (!shape.is_convolution(c)) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && units >= 1, element("weights", c), " must be (units, ", below.units(),
                      ") with units >= 1, got ", describe(weight.sizes()));
    check_tensor(element("weights", c), weight, {units, below.units()}, x);
    return {units, 1, 1};
  }
  TORCH_CHECK_VALUE(shape.is_map(shape.connections[c].below), joints.name(c), " is a convolution, but ",
                    name_of_layer(shape.connections[c].below), " is dense: it has no height and width");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.numel() >= 1, element("weights", c), " must be (channels, ",
                    below.channels, ", kernel height, kernel width), each >= 1, got ", describe(weight.sizes()));
  Convolution& made = shape.connections[c].convolution;
  made.kernel = {weight.size(2), weight.size(3)};
  check_tensor(element("weights", c), weight, {units, below.channels, made.kernel[0], made.kernel[1]}, x);
  const int64_t size[2] = {below.height, below.width};
  int64_t above[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t room = size[i] + 2 * made.padding[i] - made.kernel[i];
    above[i] = room < 0 ? 0 : (room / made.stride[i] + 1) / made.window[i];
  }
  TORCH_CHECK_VALUE(above[0] >= 1 && above[1] >= 1, element("weights", c), " and windows[", 2 * c, " .. ", 2 * c + 1,
                    "] must leave something of a map of ", describe(size), ", got a kernel of ", describe(made.kernel),
                    " and windows of ", describe(made.window));
  return {units, above[0], above[1]};
}

inline MapShape check_input(const at::Tensor& x, bool is_map) {
  if (!is_map) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) >= 1 && x.size(1) >= 1, "x must be (B, n_in) with B, n_in >= 1, got ",
                      describe(x.sizes()));
    return {x.size(1), 1, 1};
  }
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() >= 1, "x must be (B, channels, height, width), each >= 1, got ",
                    describe(x.sizes()));
  return {x.size(1), x.size(2), x.size(3)};
}

// Returns the layers above the connections; all that end at a layer agree about it.
inline void check_layers(NetworkShape& shape, const Joints& joints, at::TensorList weights, const at::Tensor& x) {
  std::vector<int> first(joints.layers(), -1);  // of the connections that end at a layer
  shape.layers.resize(joints.layers());
  const auto words = [&](int c, const MapShape& map) {
    if (shape.is_convolution(c)) return describe({map.channels, map.height, map.width});
    return describe({map.units()});
  };
  for (const int c : joints.from_the_input_on()) {
    const MapShape found = check_weight(shape, joints, c, weights[c], x);
    if (shape.connections[c].kind == Kind::readout) {
      shape.classes = found.units();
      continue;
    }
    const int layer = shape.connections[c].above, other = first[layer];
    if (other < 0) {
      shape.layers[layer] = found;
      first[layer] = c;
      continue;
    }
    const MapShape& known = shape.layers[layer];
    TORCH_CHECK_VALUE(shape.is_convolution(c) == shape.is_convolution(other) && found.channels == known.channels &&
                          found.height == known.height && found.width == known.width,
                      joints.name(c), " gives states of shape ", words(c, found), ", but ", joints.name(other),
                      " gives ", words(other, known), ": all connections that end at a layer must give one shape");
  }
}

inline std::vector<std::vector<int>> check_turns(at::IntArrayRef given, const Joints& joints, bool asynchronous) {
  if (given.empty()) return joints.scheduled_turns(asynchronous);
  const int layers = joints.layers();
  check_count("turns", given.size(), layers, "numbers, one per layer, or none");
  std::vector<std::vector<int>> turns(layers);
  for (int l = 0; l < layers; ++l) {
    TORCH_CHECK_VALUE(given[l] >= 0 && given[l] < layers, element("turns", l), " must lie in 0 .. ", layers - 1,
                      ", got ", given[l]);
    turns[given[l]].push_back(l);
  }
  std::erase_if(turns, [](const std::vector<int>& turn) { return turn.empty(); });
  return turns;
}

inline NetworkShape check_shape(const at::Tensor& x, at::TensorList weights, bool readout, bool free_feedback,
                                bool asynchronous, const StructureArguments& arguments) {
  const Joints joints(weights.size(), readout, arguments.joined);
  NetworkShape shape{};
  shape.connections = joints.connections();
  shape.output = joints.output();
  int feedback = 0;
  for (Connection& one : shape.connections)
    if (free_feedback && one.below != from_input && one.kind != Kind::readout) one.feedback = feedback++;
  check_convolutions(shape, joints, arguments);
  shape.input = check_input(x, shape.is_map(from_input));
  check_layers(shape, joints, weights, x);
  if (!readout) shape.classes = shape.layers[shape.output].units();
  shape.turns = check_turns(arguments.turns, joints, asynchronous);
  return shape;
}

// Returns whether layer follows layer, and the turns are those of a schedule: the fused kernels take that. Convolutions
// come first, as none is above a dense layer.
inline bool is_chain(const NetworkShape& shape) {
  const size_t turns = shape.turns.size();
  for (int c = 0; c < shape.connection_count(); ++c)
    if (shape.connections[c].below != c - 1 || shape.connections[c].above != c) return false;
  for (size_t turn = 0; turn < turns; ++turn)
    for (const int layer : shape.turns[turn])
      if (turns > 2 || layer % turns != turn) return false;
  return true;
}

// Returns why the fused kernels of no device take a network of this shape, or nothing if some do.
inline std::string obstacle_of(const NetworkShape& shape) {
  return is_chain(shape) ? "" : "the fused kernels take chains of layers, this network is a graph";
}

}  // namespace ceprop
