// The kernels around a library's convolutions and products, on torch's threads. Their results do not depend on how many
// those are.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../../aten/pointwise.h"
#include "../../model/unit_math.h"
#include "../team.h"
#include "../units.h"

namespace ceprop::cpu {

// body(begin, end) for shares of `count` items, on threads that flush denormal numbers.
template <class Body>
void share_out(int64_t count, int64_t least, const Body& body) {
  at::parallel_for(0, count, least, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    body(begin, end);
  });
}

inline void raise_flag(int* flag) { std::atomic_ref<int>(*flag).store(1, std::memory_order_relaxed); }

template <class T>
struct OnThreads {
  static constexpr bool gains_by_batches = false;  // their maps leave the caches
  static constexpr bool takes_whole_phases = false;
  static constexpr int64_t least = 16384;  // units that are worth a thread

  static void pool(const aten::Pooling<T>& given) {
    const aten::Windows& w = given.windows;
    const int64_t places = int64_t(w.window_height) * w.window_width, rows = w.count / w.width;
    share_out(rows, std::max<int64_t>(1, least / (w.width * places)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t top = row / w.height * w.map_height + row % w.height * w.window_height;
        for (int column = 0; column < w.width; ++column)
          pool_window(given, row * w.width + column, top * w.map_width + int64_t(column) * w.window_width);
      }
    });
  }

  static void show(const aten::Showing<T>& given) {
    share_out(given.count, least, [&](int64_t begin, int64_t end) {
      if (given.is_slope)
        CEPROP_SET::take_slopes<T>(given.activation, end - begin, given.from + begin, nullptr, given.result + begin);
      else
        CEPROP_SET::apply_activation(given.activation, given.from + begin, given.result + begin, end - begin);
    });
  }

  static void move(const aten::Move<T>& given) {
    share_out(given.count, least, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += block) move_block(given, first, std::min(block, end - first));
    });
  }

 private:
  static constexpr int64_t block = 1024;  // units whose drives stay in the nearest cache

  // Window number `window`, whose first place is `first` in all maps.
  static void pool_window(const aten::Pooling<T>& given, int64_t window, int64_t first) {
    const aten::Windows& w = given.windows;
    const bool is_max = w.pool == Pool::max;
    const auto places = static_cast<T>(w.window_height * w.window_width);
    int64_t picked = first;
    if (given.map) {
      T pooled = is_max ? given.map[first] : T(0);
      for (int y = 0; y < w.window_height; ++y)
        for (int x = 0; x < w.window_width; ++x) {
          const int64_t place = first + int64_t(y) * w.map_width + x;
          const T number = given.map[place];
          if (!is_max) {
            pooled += number;
          } else if (number > pooled || number != number) {  // the first of equal ones; one that is none
            pooled = number;
            picked = place;
          }
        }
      if (given.pooled) given.pooled[window] = is_max ? pooled : pooled / places;
    }
    if (!given.unpooled) return;
    const T value = given.values[window];
    for (int y = 0; y < w.window_height; ++y)
      for (int x = 0; x < w.window_width; ++x) {
        const int64_t place = first + int64_t(y) * w.map_width + x;
        given.unpooled[place] = !is_max ? value / places : place == picked ? value : T(0);
      }
  }

  static void move_block(const aten::Move<T>& given, int64_t first, int64_t count) {
    T drives[block], pulls[block];
    for (int64_t i = 0; i < count; ++i) drives[i] = given.below[first + i];
    if (given.above)
      for (int64_t i = 0; i < count; ++i) drives[i] += given.above[first + i];
    const T *state = given.state + first, *pull = given.pull ? pulls : nullptr;
    if (pull) CEPROP_SET::pull_units(given.nudge, count, given.pull + first, state, pulls);
    T* next = given.next + first;
    CEPROP_SET::move_units(given.rule, count, drives, state, pull, given.nudge.at, next);
    if (given.seen) CEPROP_SET::apply_activation(given.rule.activation, next, given.seen + first, count);
    if (given.slopes)
      CEPROP_SET::take_slopes(given.rule.activation, count, drives, given.nudge.at == NudgeAt::drive ? pull : nullptr,
                              given.slopes + first);
    bool holds = true, stay = true;
    for (int64_t i = 0; i < count; ++i) holds &= size_of(drives[i], next[i]) <= given.largest;
    if (!holds) raise_flag(given.broken);
    if (!given.moves) return;
    for (int64_t i = 0; i < count; ++i) stay &= stays(state[i], next[i], given.limit);
    if (!stay) raise_flag(given.moves);
  }
};

}  // namespace ceprop::cpu
