// The maps of a chain of convolutions and dense layers, from the arguments of an op. The same for every device.
#pragma once

#include <ATen/ATen.h>

#include "../model/network.h"
#include "checks.h"

namespace ceprop {

// How the first connections are made, the others being dense: two numbers each, height and width, and a letter.
struct ConvolutionArguments {
  at::IntArrayRef strides, paddings;
  std::string_view pools;
  at::IntArrayRef windows;
};

struct Geometry {
  std::vector<Convolution> convolutions;
  std::vector<MapShape> maps;  // of the input and above every connection: (n, 1, 1) above a dense one

  size_t connections() const { return maps.size() - 1; }

  // Of the states of layer l.
  std::vector<int64_t> state_sizes(int64_t batch, size_t l) const {
    const MapShape& map = maps[l + 1];
    if (l < convolutions.size()) return {batch, map.channels, map.height, map.width};
    return {batch, map.channels};
  }
};

// Of the connections that are convolutions all but their kernels; of the maps the input's.
inline Geometry check_convolutions(const at::Tensor& x, size_t connections, const ConvolutionArguments& arguments) {
  Geometry geometry;
  const size_t count = arguments.pools.size();
  TORCH_CHECK_VALUE(count < connections, "pools must hold at most ", connections - 1,
                    " letters, as the last connection is dense, got ", count);
  for (const auto& [name, given, least] : {std::tuple{"strides", arguments.strides, 1},
                                           {"paddings", arguments.paddings, 0},
                                           {"windows", arguments.windows, 1}}) {
    check_count(name, given.size(), 2 * count, "numbers, two per letter of pools");
    for (size_t i = 0; i < given.size(); ++i)
      TORCH_CHECK_VALUE(given[i] >= least && given[i] <= INT16_MAX, element(name, i), " must lie in ", least, " .. ",
                        INT16_MAX, ", got ", given[i]);
  }
  for (size_t l = 0; l < count; ++l) {
    const auto pair = [&](at::IntArrayRef of) { return std::array<int64_t, 2>{of[2 * l], of[2 * l + 1]}; };
    const Pool pool = parse_pool(arguments.pools[l]);
    const std::array<int64_t, 2> window = pool == Pool::none ? std::array<int64_t, 2>{1, 1} : pair(arguments.windows);
    geometry.convolutions.push_back({{}, pair(arguments.strides), pair(arguments.paddings), window, pool});
    TORCH_CHECK_VALUE(geometry.convolutions[l].places() <= UINT16_MAX, "windows must have at most ", UINT16_MAX,
                      " places, got ", window[0], " x ", window[1]);
  }
  if (count == 0) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) >= 1 && x.size(1) >= 1, "x must be (B, n_in) with B, n_in >= 1, got ",
                      describe(x.sizes()));
    geometry.maps.push_back({x.size(1), 1, 1});
  } else {
    TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() >= 1, "x must be (B, channels, height, width), each >= 1, got ",
                      describe(x.sizes()));
    geometry.maps.push_back({x.size(1), x.size(2), x.size(3)});
  }
  return geometry;
}

// The weight of the next connection fits what is below it. Notes its kernel and the map above it; returns the units, or
// channels, there.
inline int64_t check_weight(Geometry& geometry, const at::Tensor& weight, const at::Tensor& x) {
  const size_t l = geometry.connections();
  const MapShape below = geometry.maps.back();
  const int64_t units = weight.dim() >= 1 ? weight.size(0) : 0;
  if (l >= geometry.convolutions.size()) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && units >= 1, element("weights", l), " must be (units, ", below.units(),
                      ") with units >= 1, got ", describe(weight.sizes()));
    check_tensor(element("weights", l), weight, {units, below.units()}, x);
    geometry.maps.push_back({units, 1, 1});
    return units;
  }
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.numel() >= 1, element("weights", l), " must be (channels, ",
                    below.channels, ", kernel height, kernel width), each >= 1, got ", describe(weight.sizes()));
  Convolution& made = geometry.convolutions[l];
  made.kernel = {weight.size(2), weight.size(3)};
  check_tensor(element("weights", l), weight, {units, below.channels, made.kernel[0], made.kernel[1]}, x);
  const int64_t size[2] = {below.height, below.width};
  int64_t above[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t room = size[i] + 2 * made.padding[i] - made.kernel[i];
    above[i] = room < 0 ? 0 : (room / made.stride[i] + 1) / made.window[i];
  }
  TORCH_CHECK_VALUE(above[0] >= 1 && above[1] >= 1, element("weights", l), " and windows[", 2 * l, " .. ", 2 * l + 1,
                    "] must leave something of a map of ", describe(size), ", got a kernel of ", describe(made.kernel),
                    " and windows of ", describe(made.window));
  geometry.maps.push_back({units, above[0], above[1]});
  return units;
}

}  // namespace ceprop
