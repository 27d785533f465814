// What is learned from contrasts: EP's gradients, and C-EP's weights, at every nudged step
//   W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
//
// Connection 0 never moves before the end: its drive follows by  x x^T + 1,  as in cpu/dense/continual_update.h. The
// inner weights move literally, in shared memory if they stay there and else in place, or in low rank, at the end, as
// in cpu/dense/low_rank_update.h.
#pragma once

#include "contrast.cuh"

namespace ceprop::cuda {

template <class T, class Tile, class States>
class Learning {
 public:
  using Network = Relaxation<T, Tile, States>;

  __device__ explicit Learning(const Network& network) : network_(network), contrast_(network), p_(network.p) {}

  // Whether C-EP moves the weights of a connection in place, before the end; numbers of its parameters.
  __device__ bool moves(int c) const { return c > 0 && !p_.low_rank && !p_.layout.resident; }
  __device__ int64_t weights(int c) const { return int64_t(p_.widths[c]) * p_.widths[c + 1]; }
  __device__ int64_t biases(int c) const { return p_.widths[c + 1]; }

  // C-EP: one update of everything that this block owns and that moves during the phase, by the contrast over `divisor`
  // (beta, or 2 beta). No barrier.
  __device__ void move_own(const Between& between, double divisor) const {
    for (OwnTiles<T> own = network_.tiles(); own.next();) {
      const Item<T>& item = own.item;
      const int l = item.layer, units = p_.widths[l + 1];
      const Shown<T> moved = contrast_.moved(l, between);
      if (p_.biases[l]) contrast_.add_batch_sum(moved, item.first, units, blend(l, divisor), p_.biases[l]);
      if (l == 0) sum_up(item, moved, blend(0, divisor));
      if (p_.low_rank || !p_.layout.resident) continue;
      // Both copies of tied weights get the same bits: the terms of their sums come in the same order.
      for (int side = 0; side < 2; ++side) {
        const int c = l + side;
        if (c == 0 || c == p_.layers) continue;
        const int others = p_.widths[side ? l + 2 : l];
        for (int first = 0; first < others; first += tile_others)
          contrast_.tile(contrast_.sum_of(c, side == 1 ? Copy::feedback : Copy::weights, between), side == 0,
                         item.first, units, first, others, blend(c, divisor), network_.packed(item, side) - item.first,
                         1, Network::packed_stride);
      }
    }
  }

  // All blocks: the contrasts of all connections, over `divisor`, into EP's gradients or C-EP's weights; at the end
  // also the readout's, from the states in `last`, where C-EP has moved everything else already, and `keep` of the
  // input's weights is left. No barrier.
  __device__ void learn(const Between& between, double divisor, bool fresh, bool at_end, int last, double keep) const {
    const bool ep = p_.stages.op == Op::ep_step;
    const int matrices = 2 * p_.layers + (at_end && p_.readout ? p_.stages.nudged : 0);
    for (int m = 0; m < matrices; ++m) {
      const bool feedback = m >= p_.layers && m < 2 * p_.layers, readout = m >= 2 * p_.layers;
      const int c = readout ? p_.layers : m % p_.layers, phase = readout ? m - 2 * p_.layers : 0;
      if (feedback && (c == 0 || !p_.free_feedback)) continue;
      Sum sum = contrast_.sum_of(c, feedback ? Copy::feedback : Copy::weights, between);
      Blend<T> how = ep ? gradient_blend<T>(divisor, p_.batch, fresh) : blend(c, divisor);
      if (readout) {
        sum = {Sum::Of::readout, c, 0, 0, {0, phase + 1 < p_.stages.nudged ? kept_plus : last, 0}, phase};
        how = ep ? gradient_blend<T>(p_.stages.nudged, p_.batch, phase == 0) : blend(c, p_.stages.nudged);
        if (phase > 0) how.decay = 0;
      } else if (ep) {
        if (at_end && p_.stages.steps_learn) continue;
      } else if (at_end && c == 0) {
        sum.of = Sum::Of::input_sums;
        how = {T(1 - keep), T(1), false};
      } else if (at_end ? !p_.low_rank : p_.low_rank || p_.layout.resident || c == 0) {
        continue;
      }
      T* matrix = feedback ? (ep ? p_.feedback_gradients : p_.feedback)[c - 1] : (ep ? p_.gradients : p_.weights)[c];
      contrast_.add_to_matrix(sum, p_.widths[c + 1], p_.widths[c], how, matrix);
      T* bias = ep ? p_.bias_gradients[c] : p_.biases[c];
      if (bias && (ep || readout) && !feedback)
        contrast_.add_batch_sums(
            readout ? Shown<T>{p_.workspace.end_error[phase], 0, 0, -1, false} : contrast_.moved(c, between),
            p_.widths[c + 1], how, bias);
    }
  }

  // Writes the weights that moved in shared memory to the network's. No barrier.
  __device__ void store_resident() const {
    for (OwnTiles<T> own = network_.tiles(); own.next();) {
      const Item<T>& item = own.item;
      const int l = item.layer, units = p_.widths[l + 1];
      for (int side = 0; side < 2; ++side) {
        const int depth = side ? (l + 1 < p_.layers ? depth_above(p_, l) : 0) : depth_below(p_, l);
        if (side && !p_.free_feedback) continue;
        const T* weights = network_.packed(item, side);
        T* to = side ? p_.feedback[l] + item.first : p_.weights[l] + int64_t(item.first) * depth;
        constexpr int pack = Pack<T>::size, packs = tile_units / pack;
        for (int i = static_cast<int>(threadIdx.x); i < padded_depth(depth) * packs; i += block_threads) {
          const int k = Network::Operand::row_in_turn(i / packs), u = i % packs * pack;
          if (k >= depth) continue;
          const Pack<T> moved = load_pack(weights + k * Network::packed_stride + u);
#pragma unroll
          for (int j = 0; j < pack; ++j)
            if (item.first + u + j < units)
              to[side ? int64_t(k) * units + u + j : int64_t(u + j) * depth + k] = moved.v[j];
        }
      }
    }
  }

 private:
  __device__ Blend<T> blend(int c, double divisor) const {
    return continual_blend<T>(p_.rate[c], p_.weight_decay, divisor, p_.batch);
  }

  // C-EP's updates of W[0] so far: x times these.
  __device__ void sum_up(const Item<T>& item, const Shown<T>& moved, const Blend<T>& blend) const {
    network_.for_each_pack(item, [&](int unit, int column) {
      T* to = p_.workspace.sum + int64_t(unit) * p_.layout.columns + column;
      Pack<T> sum = load_pack(to);
      const Pack<T> change = contrast_.load(moved, unit, column);
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j) sum.v[j] = blend(sum.v[j], change.v[j]);
      store_pack(to, sum);
    });
  }

  const Network& network_;
  const Contrast<T, Tile, States> contrast_;
  const Problem<T>& p_;
};

}  // namespace ceprop::cuda
