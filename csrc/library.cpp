// Every op's schema with its contract, in one list.
//
// Common to the three ops. Connections are numbered as the weights are, layers 0 .. L - 1; n_l units in layer l.
//   x         [B, n_in], B >= 1, or where a convolution starts at the input [B, channels, height, width]; float32 or
//             float64; every other float tensor has its dtype and device
//   joined    two numbers per connection: the layer below it, -1 for the input, and the layer above it. None: a chain,
//             in which connection l joins layer l - 1, or the input, to layer l. There is no ring, and one layer, the
//             output, at which no connection starts. With `readout` one connection more comes last, from the output
//   turns     a number per layer: those of the lowest move first in a step, together, then those of the next. None: as
//             `schedule` says
//   weights   W[c] [n above, n below]; with `readout` the last is R [classes, n of the output]
//   biases    b[c] [n above] like the weights, or [0] for none
//   strides, paddings, pools, windows  of the first connections: a letter each, "m" of a convolution and a maximum, "a"
//             and an average, "i" and no pooling, "d" dense, and two numbers each, height and width; all others are
//             dense. Of a convolution W[c] is [channels, channels below, kernel height, kernel width], and states above
//             it are maps after the pooling, [B, channels, height, width]; without a readout the output is dense
//   feedback_weights  when feedback = "free" V[c] like W[c] of all connections between two layers, in order; else none
//   target    class indices [B] int64 or float targets [B, classes]
//   beta      strength of the nudge, finite, not 0 when there is a target
//   nudge_at  "state" | "drive";   loss  "mse" | "cross_entropy" (linear outputs or a readout)
//   activation, output_activation, dynamics ("prototypical" | "energy"), dt > 0, clip, schedule ("synchronous" |
//   "asynchronous"): see ceprop_cuda.Network
//   tolerance finite, >= 0: a phase ends after a multiple of 4 steps in the last of which no unit moved by more
//   precision "exact"; of torch's operators on CUDA, for float32 on sm_80 or newer, also "tf32": to which the factors
//             of products are rounded; sums, states and parameters stay float32
//   engine    "fused", the fused kernels of a CPU: they take chains, and a gate of dense layers | "teams", those of a
//             GPU, one launch: they take chains of dense layers without a readout, and EP without accumulate or a gate,
//             in exact precision, as far as the weights between layers fit on chip | "graph", torch's operators with
//             kernels around them, on CUDA recorded in a graph: they take anything | "auto", the device's fused kernels
//             where they can run, else torch's operators
// The last result is how many steps each phase took, int64, on x's device. Of the two ops that learn it is -1 in every
// phase if a number of the call, a state or what is learned is NaN, infinite or beyond 2^56 (float64: 2^500): then no
// parameter has moved, and gradients are zero. On the CPU a call can be interrupted by a signal, and then has done
// nothing. Any strides are taken; results are contiguous. Nothing is written before all arguments have been checked.
// The same call gives the same bits, by the fused kernels for every number of threads, by torch's operators for one. No
// op is differentiable. On CUDA no op waits for the device, but where a call with a tolerance does not run in one
// launch: class indices out of range are found by a device-side assertion.
#include <torch/library.h>

#define CEPROP_DYNAMICS                                                                                         \
  "str activation, str output_activation, str dynamics, float dt, bool clip, str schedule, str feedback, bool " \
  "readout, str precision='exact', int[] strides=[], int[] paddings=[], str pools='', int[] windows=[], int[] " \
  "joined=[], int[] turns=[], str engine='auto'"

TORCH_LIBRARY(ceprop_cuda, m) {
  // At most `steps` steps from `states` ([B, n_l] per layer; empty: zeros), nudged if there is a target.
  // Returns the states after them, [B, n_l] per layer, and [1] how many they were.
  m.def(
      "relax(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] feedback_weights, Tensor[] states, Tensor? target, "
      "*, "
      "int steps, float? tolerance, float beta, str nudge_at, str loss, " CEPROP_DYNAMICS
      ") -> (Tensor[] states, Tensor steps_used)");

  // Free phase from zeros, nudged phase (`symmetric`: one each with +beta and -beta, from the same free states),
  // contrast. Returns
  //   EP's estimate of the loss gradients of weights, biases and feedback, like them: minus the contrasts;
  //   the states after the free phase; those after the nudged phase, followed when symmetric by those after -beta's;
  //   the steps of these phases, [2 or 3].
  // accumulate: sum the contrasts of consecutive steps. shared_update: mean of the two updates of W[l] and V[l]. gate:
  // "none" | "unit" | "connection", see model/gates.h; the drives are those of each step that is learned from, or
  // those at the free states.
  m.def(
      "ep_step(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] feedback_weights, Tensor target, *, "
      "int free_steps, int nudged_steps, float? tolerance, float beta, str nudge_at, str loss, bool symmetric, "
      "bool accumulate, bool shared_update, str gate='none', " CEPROP_DYNAMICS
      ") -> (Tensor[] gradients, Tensor[] bias_gradients, Tensor[] feedback_gradients, Tensor[] free_states, Tensor[] "
      "nudged_states, Tensor steps_used)");

  // Free phase from zeros, then nudged steps each followed by  p <- p + lr_l (contrast - weight_decay p)  of every
  // parameter, in place; symmetric: nudged_steps with +beta, as many without nudge or update, as many with -beta.
  // lr: per connection. Writes the states at the ends of the phases, as ep_step returns them, into free_states and
  // nudged_states ([B, n_l] each; twice as many nudged ones when symmetric). Returns the steps of these phases, [2], or
  // [4] with the return between the two. update: "literal" | "low_rank" wherever exact, which is in the fused
  // kernels for dense layers | "auto", see model/costs.h.
  m.def(
      "cep_step(Tensor x, Tensor(a!)[] weights, Tensor(b!)[] biases, Tensor(c!)[] feedback_weights, Tensor target, "
      "Tensor(d!)[] free_states, Tensor(e!)[] nudged_states, *, int free_steps, int nudged_steps, float? tolerance, "
      "float beta, str nudge_at, str loss, float[] lr, bool symmetric, bool shared_update, float weight_decay, "
      "str update, str gate='none', " CEPROP_DYNAMICS ") -> Tensor steps_used");

  // Learns from N batches of a data set of S samples one after the other, with R networks of one shape: by continual EP
  // as cep_step does, or by EP and  g <- momentum g + (gradient + weight_decay p),  p <- p - lr g.  In place; a network
  // becomes bit for bit what calls with its batches alone, one by one, would make of it. On the CPU, by the fused
  // kernels only.
  //   x         [S, ...], as above, or uint8 with `values` [channels, 256], what a byte of each channel stands for: a
  //             sample's inputs are those of the first channel, then those of the next
  //   target    [S] int64 or [S, classes]
  //   order     [R, N, B] int64, numbers of samples;   betas  [R, N] float64;   rates  [R, N, connections] float64, >=
  //   0:
  //             all three on the CPU
  //   weights, biases, feedback_weights  those of the first network, then those of the next
  //   momenta   with a momentum g, like the weights, then the biases, then the feedback weights of each network
  // Returns for each batch the free phase's loss, mean over its samples, [R, N] float64, how many samples' largest
  // output is not their largest target, [R, N], and the steps of its phases, [R, N, phases]; from how many batches each
  // network has learned, [R]; and of each network the states at the ends of the last batch's phases, as ep_step returns
  // them. A network for which the numbers of a batch are not finite stays as the batch before left it, and the steps of
  // that batch are -1. A signal ends the call after the batches in work, and leaves what was learned until then; a call
  // of one batch it ends at once, without a change.
  m.def(
      "learn(Tensor x, Tensor target, Tensor order, Tensor betas, Tensor rates, Tensor? values, Tensor(a!)[] weights, "
      "Tensor(b!)[] biases, Tensor(c!)[] feedback_weights, Tensor(d!)[] momenta, *, bool continual, int free_steps, "
      "int nudged_steps, float? tolerance, str nudge_at, str loss, bool symmetric, bool accumulate, bool "
      "shared_update, "
      "float[] weight_decay, float[] momentum, str update, str gate='none', " CEPROP_DYNAMICS
      ") -> (Tensor loss, Tensor wrong, Tensor steps, Tensor learned, Tensor[] states)");
}
