// What is learned from contrasts: EP's gradients, and C-EP's weights, at every nudged step
//   W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
//
// A contrast of connection c, with U the units of a map unpooled to the positions of the kernel and (.) the correlation
// with the receptive fields, has the terms
//
//   tied          dW = (U'r'[c] - U r[c]) (.) r'[c-1]  +  U r[c] (.) (r'[c-1] - r[c-1])
//
//   vector field  dW = U*(s'[c] - s[c]) (.) r*[c-1]
//                 dV = (U's - U s) r*[c] (.) s'[c-1]  +  U s r*[c] (.) (s'[c-1] - s[c-1])
//
//   shared        both get the mean of what tied weights would by either
//
//   input         dW = U*(r'[0] - r[0]) (.) x;   db = sum of (s'[c] - s[c]), tied of (r'[c] - r[c])
//
// which the relaxation sums up over slices of the batch's positions. Here the slices are added in their order.
#pragma once

#include "parts.cuh"

namespace ceprop::cuda::conv {

template <class T>
class Learning {
 public:
  __device__ explicit Learning(const Problem<T>& problem) : parts_(problem), p_(problem) {}

  // Whether C-EP moves the weights of a connection before the end; numbers of its parameters.
  __device__ bool moves(int) const { return true; }
  __device__ int64_t weights(int c) const { return int64_t(p_.links[c].channels) * p_.links[c].depth; }
  __device__ int64_t biases(int c) const { return p_.links[c].channels; }

  // All blocks: the part's contrasts, over `divisor`, into EP's gradients or C-EP's weights. No barrier.
  __device__ void learn(const Part<T>& part, double divisor, bool fresh) const {
    const bool ep = p_.stages.op == Op::ep_step;
    for (int c = part.first; c < part.last; ++c) {
      const bool is_readout = c == p_.layers;
      const double over = is_readout ? p_.stages.nudged : divisor;
      const Blend<T> how = ep ? gradient_blend<T>(over, p_.batch, fresh)
                              : continual_blend<T>(p_.rate[c], p_.weight_decay, over, p_.batch);
      add_weights(c, how);
      T* bias = (ep ? p_.bias_gradients : p_.biases)[c];
      const T *more = nullptr, *less = nullptr, *sums = nullptr;
      if (is_readout) {
        sums = p_.workspace.end_error[0];
        if (p_.stages.nudged == 2) more = p_.workspace.end_error[1];
      } else {
        sums = parts_.shown(part.between.later, c);
        less = parts_.shown(part.between.earlier, c);
      }
      if (bias) add_bias(p_.links[c], sums, more, less, how, bias);
    }
  }

 private:
  __device__ void add_weights(int c, const Blend<T>& how) const {
    const Link& link = p_.links[c];
    const int64_t count = int64_t(link.channels) * link.depth;
    const bool ep = p_.stages.op == Op::ep_step, has_feedback = c > 0 && c < p_.layers && p_.free_feedback;
    const bool shares = has_feedback && p_.learns == Learns::shared, has_second = parts_.has_own_contrast(c, 1);
    T* weights = (ep ? p_.gradients : p_.weights)[c];
    T* feedback = has_feedback ? (ep ? p_.feedback_gradients : p_.feedback)[c - 1] : nullptr;
    for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < count;
         i += int64_t(p_.layout.blocks) * block_threads) {
      const T* from = p_.workspace.partial[c] + i;
      T first = 0, second = 0;
      for (int slice = 0; slice < link.slices; ++slice) first += from[slice * count];
      for (int slice = 0; has_second && slice < link.slices; ++slice) second += from[(link.slices + slice) * count];
      if (shares) first = second = has_second ? (first + second) / T(2) : first;
      weights[i] = how(weights[i], first);
      if (feedback) feedback[i] = how(feedback[i], second);
    }
  }

  // out[channel] is blended with the sum over the batch's maps, a warp for each.
  __device__ void add_bias(const Link& link, const T* sums, const T* more, const T* less, const Blend<T>& how,
                           T* out) const {
    const int columns = p_.batch * link.pixels, lane = static_cast<int>(threadIdx.x) % 32, warps = block_threads / 32;
    for (int channel = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / 32;
         channel < link.channels; channel += p_.layout.blocks * warps) {
      T sum = 0;
      for (int at = channel * columns + lane; at < (channel + 1) * columns; at += 32)
        sum += sums[at] + (more ? more[at] : T(0)) - (less ? less[at] : T(0));
      for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
      if (lane == 0) out[channel] = how(out[channel], sum);
    }
  }

  const Parts<T> parts_;
  const Problem<T>& p_;
};

}  // namespace ceprop::cuda::conv
