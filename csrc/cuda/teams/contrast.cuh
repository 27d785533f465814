// All blocks of the grid compute what EP learns from the states at the ends of its phases, in tiles of 16 units above a
// connection by 64 below it.
#pragma once

#include "../../model/unit_math.h"
#include "../sanity.cuh"
#include "lanes.cuh"

namespace ceprop::cuda::teams {

template <class T>
class Contrast {
 public:
  // `work`: tile_numbers of shared memory that nobody else uses now. Where the op stores nothing, gradients are zero.
  __device__ __forceinline__ Contrast(const Problem<T>& problem, T* work, bool holds)
      : p_(problem), above_(work), below_(work + 2 * tile_samples * tile_above), holds_(holds) {}

  // Stores the gradients of all weights, feedback weights and biases. Every block takes some of the tiles.
  __device__ __forceinline__ void learn() const {
    const Between between{place(p_.stages.earlier), place(p_.stages.later), place(Kept::free)};
    int tile = 0;
    for (int c = 0; c < p_.layers; ++c) {
      const int above = p_.widths[c + 1], below = p_.widths[c];
      for (int copy = 0; copy < 1 + (p_.free_feedback && c > 0); ++copy)
        for (int a = 0; a < above; a += tile_above)
          for (int b = 0; b < below; b += tile_below, ++tile)
            if (tile % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x))
              take(c, copy == 0 ? Copy::weights : Copy::feedback, a, b, between);
    }
  }

 private:
  // Returns where kept states are: 0 has the free phase's, 1 and 2 have those of the nudged phases.
  __device__ __forceinline__ int place(Kept kept) const {
    return kept == Kept::free ? 0 : kept == Kept::plus ? 1 : p_.stages.nudged;
  }
  __device__ __forceinline__ const T* states(int place, int layer) const {
    return place == 0 ? p_.free_states[layer] : p_.nudged_states[place - 1][layer];
  }

  // Returns what a unit of a layer, or of the input, shows.
  __device__ __forceinline__ T shown_at(int layer, int place, int sample, int unit) const {
    const int64_t at = int64_t(sample) * p_.widths[layer + 1] + unit;
    if (layer < 0) return shown_by(p_.input_activation, p_.rules[0].dynamics, p_.x[at]);
    const UnitRule& rule = p_.rules[layer];
    return shown_by(rule.activation, rule.dynamics, __ldcg(states(place, layer) + at));
  }
  __device__ __forceinline__ T moved_at(int layer, const Between& between, int sample, int unit) const {
    const int64_t at = int64_t(sample) * p_.widths[layer + 1] + unit;
    if (moves_states(p_.learns))
      return __ldcg(states(between.later, layer) + at) - __ldcg(states(between.earlier, layer) + at);
    return shown_at(layer, between.later, sample, unit) - shown_at(layer, between.earlier, sample, unit);
  }

  __device__ __forceinline__ void take(int c, Copy copy, int first_above, int first_below,
                                       const Between& between) const {
    const int above = p_.widths[c + 1], below = p_.widths[c];
    const Terms terms = terms_of(p_.learns, c == 0, copy);
    const auto blend = gradient_blend<T>(p_.stages.divisor, p_.batch, true);
    T* const out = copy == Copy::weights ? p_.gradients[c] : p_.feedback_gradients[c - 1];
    constexpr int fours = tile_below / 4, items = tile_above * fours;
    const int threads = static_cast<int>(blockDim.x);
    // Few threads take more than one pass over the samples.
    for (int item = static_cast<int>(threadIdx.x); item - static_cast<int>(threadIdx.x) < items; item += threads) {
      const int row = item / fours, column = item % fours * 4;
      T sum[4] = {}, of_bias = 0;
      for (int sample = 0; sample < p_.batch; sample += tile_samples) {
        __syncthreads();
        bring(c, terms, first_above, first_below, sample, between);
        __syncthreads();
        if (item >= items) continue;
        for (int term = 0; term < 2; ++term) {
          if (!(term == 0 ? terms.above_moves : terms.below_moves)) continue;
          for (int s = 0; s < tile_samples; ++s) {
            const T upper = above_[(term * tile_samples + s) * tile_above + row];
            const T* lower = below_ + (term * tile_samples + s) * tile_below + column;
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i] += upper * lower[i];
            if (term == 0) of_bias += upper;
          }
        }
      }
      const int unit = first_above + row;
      if (item >= items || unit >= above) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first_below + column + i < below)
          out[int64_t(unit) * below + first_below + column + i] = holds_ ? blend(T(0), sum[i]) : T(0);
      if (copy == Copy::weights && first_below == 0 && column == 0 && p_.bias_gradients[c])
        p_.bias_gradients[c][unit] = holds_ ? blend(T(0), of_bias) : T(0);
    }
  }

  // Brings what the two terms multiply, for some samples, and zeros past the last.
  __device__ __forceinline__ void bring(int c, const Terms& terms, int first_above, int first_below, int first_sample,
                                        const Between& between) const {
    const int above = p_.widths[c + 1], below = p_.widths[c], threads = static_cast<int>(blockDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < tile_samples * tile_above; i += threads) {
      const int s = first_sample + i / tile_above, unit = first_above + i % tile_above;
      const bool exists = s < p_.batch && unit < above;
      if (terms.above_moves) above_[i] = exists ? moved_at(c, between, s, unit) : T(0);
      if (terms.below_moves)
        above_[tile_samples * tile_above + i] = exists ? shown_at(c, between.shown_above(p_.learns), s, unit) : T(0);
    }
    for (int i = static_cast<int>(threadIdx.x); i < tile_samples * tile_below; i += threads) {
      const int s = first_sample + i / tile_below, unit = first_below + i % tile_below;
      const bool exists = s < p_.batch && unit < below;
      if (terms.above_moves) below_[i] = exists ? shown_at(c - 1, between.shown_below(p_.learns), s, unit) : T(0);
      if (terms.below_moves) below_[tile_samples * tile_below + i] = exists ? moved_at(c - 1, between, s, unit) : T(0);
    }
  }

  const Problem<T>& p_;
  T *const above_, *const below_;
  const bool holds_;
};

}  // namespace ceprop::cuda::teams
