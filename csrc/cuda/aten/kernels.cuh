// The kernels around a library's convolutions, see aten/pointwise.h.
#pragma once

#include "../../aten/pointwise.h"
#include "../block/units.cuh"

namespace ceprop::cuda {

// A thread has a window at a time.
template <class T>
__global__ void __launch_bounds__(block_threads) pool_windows(const aten::Pooling<T> given) {
  const aten::Windows& w = given.windows;
  const bool is_max = w.pool == Pool::max;
  const int windows = w.height * w.width, places = w.window_height * w.window_width;  // of a map; of a window
  const int64_t at_once = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < w.count; i += at_once) {
    const int in_map = static_cast<int>(i % windows);
    const int64_t first = i / windows * w.map_height * w.map_width + in_map / w.width * w.window_height * w.map_width +
                          in_map % w.width * w.window_width;
    const auto place_of = [&](int place) { return place / w.window_width * w.map_width + place % w.window_width; };
    int picked = 0;
    T pooled = 0;
    for (int place = 0; given.map && place < places; ++place) {
      const T number = given.map[first + place_of(place)];
      if (!is_max) {
        pooled += number;
      } else if (place == 0 || number > pooled || number != number) {  // the first of equal ones; one that is none
        pooled = number;
        picked = place;
      }
    }
    if (given.pooled) given.pooled[i] = is_max ? pooled : pooled / T(places);
    if (!given.unpooled) continue;
    const T value = given.values[i];
    for (int place = 0; place < places; ++place)
      given.unpooled[first + place_of(place)] = !is_max ? value / T(places) : place == picked ? value : T(0);
  }
}

// body(first, there) for packs of so many units, of which a thread has one at a time.
template <class T, class Body>
__device__ __forceinline__ void for_each_pack(int64_t count, const Body& body) {
  constexpr int pack = Pack<T>::size;
  const int64_t at_once = int64_t(gridDim.x) * block_threads * pack;
  for (int64_t first = (int64_t(blockIdx.x) * block_threads + threadIdx.x) * pack; first < count; first += at_once)
    body(first, count - first < pack ? static_cast<int>(count - first) : pack);
}

template <class T>
__global__ void __launch_bounds__(block_threads) show_units(const aten::Showing<T> given) {
  for_each_pack<T>(given.count, [&](int64_t first, int there) {
    const Pack<T> from = load_some(given.from + first, there);
    store_some(given.result + first, given.is_slope ? slope_of(given.activation, from) : rho_of(given.activation, from),
               there);
  });
}

template <class T>
__global__ void __launch_bounds__(block_threads) move_units(const aten::Move<T> given) {
  constexpr int pack = Pack<T>::size;
  bool moves = false, holds = true;
  for_each_pack<T>(given.count, [&](int64_t first, int there) {
    const Pack<T> state = load_some(given.state + first, there);
    Pack<T> drive = load_some(given.below + first, there), pull{};
    if (given.above) drive += load_some(given.above + first, there);
    if (given.pull) pull = pull_of(given.nudge.loss, T(given.nudge.beta), load_some(given.pull + first, there), state);
    const Pack<T> next = next_of(given.rule, drive, state, pull, given.nudge.at);
    store_some(given.next + first, next, there);
    if (given.seen) store_some(given.seen + first, rho_of(given.rule.activation, next), there);
    if (given.slopes) {
      Pack<T> inside = drive;
      if (given.nudge.at == NudgeAt::drive) inside += pull;
      store_some(given.slopes + first, slope_of(given.rule.activation, inside), there);
    }
    T size = 0;
#pragma unroll
    for (int j = 0; j < pack; ++j) size += j < there ? size_of(drive.v[j], next.v[j]) : T(0);
    holds = holds && size <= given.largest;
    if (!given.moves) return;
#pragma unroll
    for (int j = 0; j < pack; ++j) moves = moves || (j < there && !stays(state.v[j], next.v[j], given.limit));
  });
  if (given.moves && moves) atomicExch(given.moves, 1);
  if (!holds) atomicExch(given.broken, 1);
}

// Blocks for so many items of work.
inline unsigned blocks_for(int64_t items) {
  constexpr int64_t most = 1 << 16;
  const int64_t blocks = (items + block_threads - 1) / block_threads;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}
template <class T>
unsigned blocks_of(const aten::Pooling<T>& given) {
  return blocks_for(given.windows.count);
}
template <template <class> class Units, class T>
unsigned blocks_of(const Units<T>& given) {
  return blocks_for((given.count + Pack<T>::size - 1) / Pack<T>::size);
}

}  // namespace ceprop::cuda
