// What is learned from contrasts: EP's gradients, and C-EP's weights, at every nudged step
//   W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
//
// Connection 0 never moves before the end: its drive follows by  x x^T + 1,  as in cpu/continual_update.h. The inner
// weights move literally, in shared memory if they stay there and else in place, or in low rank, at the end, as in
// cpu/low_rank_update.h.
#pragma once

#include "contrast.cuh"

namespace ceprop::cuda {

template <class T, class Tile, class States>
class Learning {
 public:
  using Network = Relaxation<T, Tile, States>;

  __device__ explicit Learning(const Network& network) : network_(network), contrast_(network), p_(network.p) {}

  __device__ int phases() const { return p_.symmetric ? 2 : 1; }

  // C-EP: x x^T + 1, and nothing learned yet. Ends with a barrier.
  __device__ void load() const {
    for (int row = static_cast<int>(blockIdx.x); row < p_.batch; row += p_.layout.blocks) {
      const Shown<T> x{p_.workspace.x, 0, 0, -1, false};
      add_dots(x, x, p_.widths[0], row, T(1), true, p_.biases[0] ? T(1) : T(0), p_.workspace.gram);
    }
    network_.for_each_item(-1, [&](const Item<T>& item) {
      if (item.layer == 0) for_each_sample(item, [&](int64_t at, int, int) { p_.workspace.sum[at] = 0; });
    });
    network_.states.sync();
  }

  // The B x B matrices by which the weights' move since the free phase acts on the states in `field`. Ends with a
  // barrier.
  __device__ void prepare_low_rank(int field) const {
    for (int index = static_cast<int>(blockIdx.x); index < p_.layers * p_.batch; index += p_.layout.blocks) {
      const int l = index / p_.batch, row = index % p_.batch;
      for (int m = l - 1; m <= l + 1; m += 2) {
        if (m < 0 || m >= p_.layers) continue;
        for (int which = 0; which < 2; ++which) {
          const Shown<T> seen{nullptr, m, field, -1, false}, other{nullptr, m, field, which ? kept_free : -1, false};
          add_dots(other, seen, p_.widths[m + 1], row, scale(l > m ? l : m, p_.nudge.beta), m < l || l == 0, T(0),
                   which ? p_.workspace.of_free[l] : p_.workspace.of_away[l]);
        }
      }
    }
    network_.states.sync();
  }

  // C-EP: one update of everything that this block owns and that moves during the phase, by the contrast over `divisor`
  // (beta, or 2 beta). No barrier.
  __device__ void move_own(const Between& between, double divisor) const {
    network_.for_each_item(-1, [&](const Item<T>& item) {
      const int l = item.layer, units = p_.widths[l + 1];
      const Shown<T> moved = contrast_.moved(l, between);
      if (p_.biases[l]) contrast_.add_batch_sum(moved, item.first, units, blend(l, divisor), p_.biases[l]);
      if (l == 0) move_drive(item, moved, blend(0, divisor));
      if (p_.low_rank || !p_.layout.resident) return;
      // Both copies of tied weights get the same bits: the terms of their sums come in the same order.
      T* weights = item.weights - item.first;
      for (int c = l; c <= l + 1; weights += padded_depth(network_.depth_below(l)) * tile_units, ++c) {
        if (c == 0 || c == p_.layers) continue;
        const int others = c == l ? p_.widths[l] : p_.widths[l + 2];
        for (int first = 0; first < others; first += tile_others)
          contrast_.tile(contrast_.terms(c, c > l, between), c == l, item.first, units, first, others,
                         blend(c, divisor), weights, 1, tile_units);
      }
    });
  }

  // All blocks: the contrasts of all connections, over `divisor`, into EP's gradients or C-EP's weights; at the end
  // also the readout's, from the states in `last`, where C-EP has moved everything else `moves` times already. No
  // barrier.
  __device__ void learn(const Between& between, double divisor, bool fresh, bool at_end, int last, int moves) const {
    const bool ep = p_.op == Op::ep_step;
    const int matrices = 2 * p_.layers + (at_end && p_.readout ? phases() : 0);
    for (int m = 0; m < matrices; ++m) {
      const bool feedback = m >= p_.layers && m < 2 * p_.layers, readout = m >= 2 * p_.layers;
      const int c = readout ? p_.layers : m % p_.layers, phase = readout ? m - 2 * p_.layers : 0;
      if (feedback && (c == 0 || !p_.free_feedback)) continue;
      Terms terms = contrast_.terms(c, feedback, between);
      Blend<T> how = ep ? Blend<T>{T(0), T(-1.0 / (divisor * double(p_.batch))), fresh} : blend(c, divisor);
      if (readout) {
        terms = {Terms::Of::readout, c, 0, 0, {0, phase + 1 < phases() ? kept_plus : last, 0}, phase};
        how = ep ? Blend<T>{T(0), T(-1.0 / (phases() * double(p_.batch))), phase == 0} : blend(c, phases());
        if (phase > 0) how.decay = 0;
      } else if (ep) {
        if (at_end && accumulates()) continue;
      } else if (at_end && c == 0) {
        terms.of = Terms::Of::input_sums;
        how = {T(1 - ::pow(1 - p_.rate[0] * p_.weight_decay, double(moves))), T(1), false};
      } else if (at_end ? !p_.low_rank : p_.low_rank || p_.layout.resident || c == 0) {
        continue;
      }
      T* matrix = feedback ? (ep ? p_.feedback_gradients : p_.feedback)[c - 1] : (ep ? p_.gradients : p_.weights)[c];
      contrast_.add_to_matrix(terms, p_.widths[c + 1], p_.widths[c], how, matrix);
      T* bias = ep ? p_.bias_gradients[c] : p_.biases[c];
      if (bias && (ep || readout) && !feedback)
        contrast_.add_batch_sums(
            readout ? Shown<T>{p_.workspace.end_error[phase], 0, 0, -1, false} : contrast_.moved(c, between),
            p_.widths[c + 1], how, bias);
    }
  }

  // EP in a vector field: sums of the contrasts of consecutive steps. Else they telescope to that between the ends.
  __device__ bool accumulates() const { return p_.accumulate && p_.free_feedback && !p_.shared_update; }

  // Writes the weights that moved in shared memory to the network's. No barrier.
  __device__ void store_resident() const {
    network_.for_each_item(-1, [&](const Item<T>& item) {
      const int l = item.layer, units = p_.widths[l + 1];
      for (int side = 0; side < 2; ++side) {
        const int depth = side ? (l + 1 < p_.layers ? network_.depth_above(l) : 0) : network_.depth_below(l);
        if (side && !p_.free_feedback) continue;
        const T* weights = network_.packed(item, side);
        T* to = side ? p_.feedback[l] + item.first : p_.weights[l] + int64_t(item.first) * depth;
        for (int i = static_cast<int>(threadIdx.x); i < depth * tile_units; i += block_threads) {
          const int k = i / tile_units, u = i % tile_units;
          if (item.first + u < units) to[side ? int64_t(k) * units + u : int64_t(u) * depth + k] = weights[i];
        }
      }
    });
  }

 private:
  // How connection c takes a contrast over `divisor`.
  __device__ Blend<T> blend(int c, double divisor) const {
    return {T(p_.rate[c] * p_.weight_decay), scale(c, divisor), false};
  }
  __device__ T scale(int c, double divisor) const { return T(p_.rate[c] / (divisor * double(p_.batch))); }

  // body(at, unit, sample) for an item's units and the samples of the batch; `at`: in rows of the workspace.
  template <class Body>
  __device__ void for_each_sample(const Item<T>& item, const Body& body) const {
    for (int i = static_cast<int>(threadIdx.x); i < tile_units * p_.batch; i += block_threads) {
      const int unit = item.first + i / p_.batch, sample = i % p_.batch;
      if (unit < p_.widths[item.layer + 1]) body(int64_t(unit) * p_.layout.columns + sample, unit, sample);
    }
  }

  // Row `row` of matrix [batch] <- rate sum_units a[unit][row] b[unit][.] + offset, or added to it, by this block.
  __device__ void add_dots(const Shown<T>& a, const Shown<T>& b, int units, int row, T rate, bool fresh, T offset,
                           T* matrix) const {
    const int pass = p_.layout.pass, slices = block_threads / pass, slice = static_cast<int>(threadIdx.x) / pass;
    const int column = static_cast<int>(threadIdx.x) % pass;
    T* partial = network_.work();
    for (int first = 0; first < p_.batch; first += pass) {
      __syncthreads();
      T sum = 0;
      if (slice < slices && first + column < p_.batch)
        for (int unit = slice; unit < units; unit += slices)
          sum += contrast_.at(a, unit, row) * contrast_.at(b, unit, first + column);
      partial[threadIdx.x] = sum;
      __syncthreads();
      if (slice > 0 || first + column >= p_.batch) continue;
      T all = 0;
      for (int s = 0; s < slices; ++s) all += partial[s * pass + column];
      T& out = matrix[int64_t(row) * p_.layout.columns + first + column];
      out = fresh ? rate * all + offset : out + rate * all;
    }
  }

  __device__ void move_drive(const Item<T>& item, const Shown<T>& moved, const Blend<T>& blend) const {
    for_each_sample(item, [&](int64_t at, int unit, int sample) {
      T change = 0;
      for (int other = 0; other < p_.batch; ++other)
        change += p_.workspace.gram[int64_t(other) * p_.layout.columns + sample] * contrast_.at(moved, unit, other);
      p_.workspace.drive[at] = blend(p_.workspace.drive[at], change);
      p_.workspace.sum[at] = blend(p_.workspace.sum[at], contrast_.at(moved, unit, sample));
    });
  }

  const Network& network_;
  const Contrast<T, Tile, States> contrast_;
  const Problem<T>& p_;
};

}  // namespace ceprop::cuda
