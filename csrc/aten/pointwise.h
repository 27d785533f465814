// What the kernels around a library's convolutions and products are told. No torch, no CUDA.
#pragma once

#include <cstdint>

#include "../model/network.h"

namespace ceprop::aten {

// Windows that lie side by side in maps: height x width of them in each, of window_height x window_width places.
struct Windows {
  Pool pool;      // maximum or average
  int64_t count;  // in all maps
  int height, width, window_height, window_width;
  int map_height, map_width;
};

// A pooling on its way up, its transpose on the way down, or both in one pass over the map.
template <class T>
struct Pooling {
  Windows windows;
  const T* map;     // [maps][map_height][map_width]; may be null where averages only go down
  const T* values;  // [maps][height][width], or null: what goes down
  T* pooled;        // [maps][height][width], or null
  T* unpooled;      // [maps][map_height][map_width], or null: `values` at the map's maxima, the first of equal ones,
                    // and zeros, or in equal parts; what no window covers stays as it is
};

// result = rho(from), what units show to their neighbours in energy dynamics, or rho'(from).
template <class T>
struct Showing {
  Activation activation;
  bool is_slope;
  int64_t count;
  const T* from;
  T* result;
};

// Units of one layer and of all samples.
template <class T>
struct Move {
  UnitRule rule;
  int64_t count;
  const T *below, *above;  // what drives them; above may be null
  const T* state;
  const T* pull;  // null, or what gives the nudge's pull: the target, or beta times the error
  Nudge nudge;
  T* next;
  T* seen;    // rho(next), or null
  T* slopes;  // rho' of the drive and of what a nudge adds to it, or null
  T limit;
  int* moves;  // becomes 1 where a unit moves by more than the limit; null: nobody asks
  T largest;
  int* broken;  // becomes 1 where a drive or a state is none, or a state is larger
};

}  // namespace ceprop::aten
