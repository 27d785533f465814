// All blocks of the grid compute what is learned at the end of an op, in tiles of 32 units above a connection by 128
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
    int tiles = 0;
    for (int c = 0; c < p_.layers; ++c)
      for (int copy = 0; copy < 1 + (p_.free_feedback && c > 0); ++copy)
        take_all(c, copy == 0 ? Copy::weights : Copy::feedback, between, blend, holds,
                 copy == 0 ? p_.gradients[c] : p_.feedback_gradients[c - 1], copy == 0 ? p_.bias_gradients[c] : nullptr,
                 tiles);
  }
  // Moves the input's weights, and its bias, by what steps have gathered in p.sums; `keep` of them is left. Of EP that
  // is the gradient.
  __device__ __forceinline__ void move_input(double keep) {
    int tiles = 0;
    by_sums_ = true;
    if (p_.stages.op == Op::cep_step)
      take_all(0, Copy::weights, {}, {T(1 - keep), T(1)}, true, p_.weights[0], p_.biases[0], tiles);
    else
      take_all(0, Copy::weights, {}, {T(0), T(1), true}, true, p_.gradients[0], p_.bias_gradients[0], tiles);
  }

 private:
  // Returns where kept states are: 0 has the free phase's, 1 and 2 have those of the nudged phases.
  __device__ __forceinline__ int place(Kept kept) const {
    return kept == Kept::free ? 0 : kept == Kept::plus ? 1 : p_.stages.nudged;
  }
  __device__ __forceinline__ const T* states(int place, int layer) const {
    return place == 0 ? p_.free_states[layer] : p_.nudged_states[place - 1][layer];
  }

  // What a term takes of one end of a connection: what its units show, or by how much they move, which is a difference.
  struct Side {
    const T* now;     // [B][n]
    const T* before;  // null: none
    bool as_is;       // the numbers themselves, not rho of them
    Activation activation;

    __device__ __forceinline__ T number(T now_there, T before_there) const {
      if (as_is) return before ? now_there - before_there : now_there;
      T of = 0;
      with_activation(activation, [&]<Activation A>() {
        of = before ? rho<A>(now_there) - rho<A>(before_there) : rho<A>(now_there);
      });
      return of;
    }
  };
  // Layer -1 is the input.
  __device__ __forceinline__ Side shown(int layer, int place) const {
    const UnitRule& rule = p_.rules[layer < 0 ? 0 : layer];
    const bool as_is = rule.dynamics == Dynamics::prototypical;
    if (layer < 0) return {p_.x, nullptr, as_is, p_.input_activation};
    return {states(place, layer), nullptr, as_is, rule.activation};
  }
  __device__ __forceinline__ Side moved(int layer, const Between& between) const {
    if (by_sums_) return {p_.sums, nullptr, true, Activation::linear};
    Side side = shown(layer, between.later);
    side.before = states(between.earlier, layer);
    side.as_is = side.as_is || moves_states(p_.learns);
    return side;
  }

  // Every block takes some of the tiles; `before` counts those of other copies and connections.
  __device__ __forceinline__ void take_all(int c, Copy copy, const Between& between, const Blend<T>& blend, bool holds,
                                           T* out, T* bias, int& before) const {
    const int columns = (p_.widths[c] + tile_below - 1) / tile_below;
    const int tiles = (p_.widths[c + 1] + tile_above - 1) / tile_above * columns, blocks = static_cast<int>(gridDim.x);
    for (int tile = (static_cast<int>(blockIdx.x) + blocks - before % blocks) % blocks; tile < tiles; tile += blocks)
      take(c, copy, tile / columns * tile_above, tile % columns * tile_below, between, blend, holds, out, bias);
    before += tiles;
  }

  __device__ __forceinline__ void take(int c, Copy copy, int first_above, int first_below, const Between& between,
                                       const Blend<T>& blend, bool holds, T* out, T* bias) const {
    const int above = p_.widths[c + 1], below = p_.widths[c];
    const Terms terms = terms_of(p_.learns, c == 0, copy);
    const auto put = [&](T& number, T sum) { number = holds ? blend(blend.fresh ? T(0) : number, sum) : T(0); };
    constexpr int fours = tile_below / 4, items = tile_above / 4 * fours;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    // Few threads take more than one pass over the samples.
    for (int item = thread; item - thread < items; item += threads) {
      const int row = item / fours * 4, column = item % fours * 4;
      T sum[4][4] = {}, of_bias[4] = {};
      for (int sample = 0; sample < p_.batch; sample += tile_samples) {
        __syncthreads();
        if (terms.above_moves) {
          bring<tile_above>(of_above(0, 0), moved(c, between), first_above, above, sample);
          bring<tile_below>(of_below(0, 0), shown(c - 1, between.shown_below(p_.learns)), first_below, below, sample);
        }
        if (terms.below_moves) {
          bring<tile_above>(of_above(1, 0), shown(c, between.shown_above(p_.learns)), first_above, above, sample);
          bring<tile_below>(of_below(1, 0), moved(c - 1, between), first_below, below, sample);
        }
        __syncthreads();
        if (item >= items) continue;
        for (int term = 0; term < 2; ++term) {
          if (!(term == 0 ? terms.above_moves : terms.below_moves)) continue;
#pragma unroll 4
          for (int s = 0; s < tile_samples; ++s) {
            const auto upper = memory_.get<Four<T>>(of_above(term, s * tile_above + row));
            const auto lower = memory_.get<Four<T>>(of_below(term, s * tile_below + column));
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[j][i] += upper.v[j] * lower.v[i];
              if (term == 0) of_bias[j] += upper.v[j];
            }
          }
        }
      }
      if (item >= items) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int unit = first_above + row + j;
        if (unit >= above) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first_below + column + i < below) put(out[int64_t(unit) * below + first_below + column + i], sum[j][i]);
        if (bias && first_below == 0 && column == 0) put(bias[unit], of_bias[j]);
      }
    }
  }

  // Brings a side's numbers of some units and samples, [sample][unit], and zeros past the last. A number takes hundreds
  // of clocks to come, so that some are on their way at once.
  template <int Units>
  __device__ __forceinline__ void bring(int place, const Side& side, int first_unit, int units,
                                        int first_sample) const {
    constexpr int at_once = 4, count = tile_samples * Units;
    const int threads = static_cast<int>(blockDim.x);
    const auto exists = [&](int i) {
      return i < count && first_sample + i / Units < p_.batch && first_unit + i % Units < units;
    };
    for (int first = static_cast<int>(threadIdx.x); first < count; first += at_once * threads) {
      T now[at_once], before[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int i = first + k * threads;
        const int64_t at = int64_t(first_sample + i / Units) * units + first_unit + i % Units;
        now[k] = exists(i) ? __ldcg(side.now + at) : T(0);
        before[k] = side.before && exists(i) ? __ldcg(side.before + at) : T(0);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int i = first + k * threads;
        if (i < count) memory_.put(place + i * int(sizeof(T)), exists(i) ? side.number(now[k], before[k]) : T(0));
      }
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
  bool by_sums_ = false;  // of what has moved
};

}  // namespace ceprop::cuda::teams
