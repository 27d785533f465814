// All blocks of the grid compute what is learned at the end of an op, in tiles of 16 units above a connection by 64
// below it: EP's gradients, from the states at the ends of its phases, and the input's weights of C-EP, from the sums
// of its updates.
#pragma once

#include "../../model/unit_math.h"
#include "lanes.cuh"
#include "sanity.cuh"

namespace ceprop::cuda::teams {

template <class T>
class Contrast {
 public:
  // Takes the block's shared memory, which nobody else uses now.
  __device__ __forceinline__ explicit Contrast(const Problem<T>& problem) : p_(problem) {}

  // Stores the gradients of all weights, feedback weights and biases; unless `holds`, zeros.
  __device__ __forceinline__ void learn(bool holds) const {
    const Between between{place(p_.stages.earlier), place(p_.stages.later), place(Kept::free)};
    Blend<T> blend = gradient_blend<T>(p_.stages.divisor, p_.batch, true);
    int tile = 0;
    for (int c = 0; c < p_.layers; ++c)
      for (int copy = 0; copy < 1 + (p_.free_feedback && c > 0); ++copy)
        take_all(c, copy == 0 ? Copy::weights : Copy::feedback, between, blend, holds,
                 copy == 0 ? p_.gradients[c] : p_.feedback_gradients[c - 1], copy == 0 ? p_.bias_gradients[c] : nullptr,
                 tile);
  }
  // Moves the input's weights, and its bias, by what C-EP has gathered in p.sums; `keep` of them is left.
  __device__ __forceinline__ void move_input(double keep) const {
    int tile = 0;
    take_all(0, Copy::weights, {}, {T(1 - keep), T(1)}, true, p_.weights[0], p_.biases[0], tile);
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
    if (p_.stages.op == Op::cep_step) return __ldcg(p_.sums + at);
    if (moves_states(p_.learns))
      return __ldcg(states(between.later, layer) + at) - __ldcg(states(between.earlier, layer) + at);
    return shown_at(layer, between.later, sample, unit) - shown_at(layer, between.earlier, sample, unit);
  }

  // Every block takes some of the tiles.
  __device__ __forceinline__ void take_all(int c, Copy copy, const Between& between, const Blend<T>& blend, bool holds,
                                           T* out, T* bias, int& tile) const {
    for (int a = 0; a < p_.widths[c + 1]; a += tile_above)
      for (int b = 0; b < p_.widths[c]; b += tile_below, ++tile)
        if (tile % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x))
          take(c, copy, a, b, between, blend, holds, out, bias);
  }

  __device__ __forceinline__ void take(int c, Copy copy, int first_above, int first_below, const Between& between,
                                       const Blend<T>& blend, bool holds, T* out, T* bias) const {
    const int above = p_.widths[c + 1], below = p_.widths[c];
    const Terms terms = terms_of(p_.learns, c == 0, copy);
    const auto put = [&](T& number, T sum) { number = holds ? blend(blend.fresh ? T(0) : number, sum) : T(0); };
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
            const T upper = memory_.get<T>(of_above(term, s * tile_above + row));
            const auto lower = memory_.get<Four<T>>(of_below(term, s * tile_below + column));
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i] += upper * lower.v[i];
            if (term == 0) of_bias += upper;
          }
        }
      }
      const int unit = first_above + row;
      if (item >= items || unit >= above) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first_below + column + i < below) put(out[int64_t(unit) * below + first_below + column + i], sum[i]);
      if (bias && first_below == 0 && column == 0) put(bias[unit], of_bias);
    }
  }

  // Brings what the two terms multiply, for some samples, and zeros past the last.
  __device__ __forceinline__ void bring(int c, const Terms& terms, int first_above, int first_below, int first_sample,
                                        const Between& between) const {
    const int above = p_.widths[c + 1], below = p_.widths[c], threads = static_cast<int>(blockDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < tile_samples * tile_above; i += threads) {
      const int s = first_sample + i / tile_above, unit = first_above + i % tile_above;
      const bool exists = s < p_.batch && unit < above;
      if (terms.above_moves) memory_.put(of_above(0, i), exists ? moved_at(c, between, s, unit) : T(0));
      if (terms.below_moves)
        memory_.put(of_above(1, i), exists ? shown_at(c, between.shown_above(p_.learns), s, unit) : T(0));
    }
    for (int i = static_cast<int>(threadIdx.x); i < tile_samples * tile_below; i += threads) {
      const int s = first_sample + i / tile_below, unit = first_below + i % tile_below;
      const bool exists = s < p_.batch && unit < below;
      if (terms.above_moves)
        memory_.put(of_below(0, i), exists ? shown_at(c - 1, between.shown_below(p_.learns), s, unit) : T(0));
      if (terms.below_moves) memory_.put(of_below(1, i), exists ? moved_at(c - 1, between, s, unit) : T(0));
    }
  }

  // Places in shared memory of a term's numbers, [sample][unit] of the tile.
  __device__ __forceinline__ static int of_above(int term, int number) {
    return (term * tile_samples * tile_above + number) * int(sizeof(T));
  }
  __device__ __forceinline__ static int of_below(int term, int number) {
    return of_above(2, term * tile_samples * tile_below + number);
  }

  const Problem<T>& p_;
  const Memory memory_;
};

}  // namespace ceprop::cuda::teams
