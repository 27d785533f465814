// Every op's schema with its contract, in one list, and a small module of build facts.
//
// Common to the three ops. L layers count from the input, n_in inputs; with a readout there are L + 1 connections.
//   x         [B, n_in], B >= 1, float32 or float64; every other float tensor has its dtype and device
//   weights   W[l] [n_l, n_{l-1}], input side first; with `readout` the last is R [classes, n_{L-1}]
//   biases    b[l] [n_l] like the weights, or [0] for none
//   feedback_weights  V[1], V[2], ... like W[1], W[2], ... when feedback = "free"; empty when "tied"
//   target    class indices [B] int64 or float targets [B, classes]
//   beta      strength of the nudge, finite, not 0 when there is a target
//   nudge_at  "state" | "drive";   loss  "mse" | "cross_entropy" (linear outputs or a readout)
//   activation, output_activation, dynamics ("prototypical" | "energy"), dt > 0, clip: see ceprop_cuda.Network
// Any strides are taken; results are contiguous. Nothing is written before all arguments have been checked. The same
// call gives the same bits for every number of threads. No op is differentiable.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#ifdef CEPROP_WITH_CUDA
#include "cuda/build_facts.h"
#endif

#define CEPROP_DYNAMICS \
  "str activation, str output_activation, str dynamics, float dt, bool clip, str feedback, bool readout"

TORCH_LIBRARY(ceprop_cuda, m) {
  // `steps` synchronous steps from `states` ([B, n_l] per layer; empty: zeros), nudged if there is a target.
  // Returns the states after them, [B, n_l] per layer.
  m.def(
      "relax(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] feedback_weights, Tensor[] states, Tensor? target, "
      "*, "
      "int steps, float beta, str nudge_at, str loss, " CEPROP_DYNAMICS ") -> Tensor[]");

  // Free phase from zeros, nudged phase (`symmetric`: one each with +beta and -beta, from the same free states),
  // contrast. Returns
  //   the directions of descent of weights, biases and feedback (minus EP's estimate of the loss gradients), like them;
  //   the states after the free phase; those after the nudged phase, followed when symmetric by those after -beta's.
  // accumulate: sum the contrasts of consecutive steps. shared_update: mean of the two updates of W[l] and V[l].
  m.def(
      "ep_step(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] feedback_weights, Tensor target, *, "
      "int free_steps, int nudged_steps, float beta, str nudge_at, str loss, bool symmetric, bool accumulate, "
      "bool shared_update, " CEPROP_DYNAMICS
      ") -> (Tensor[] d_weights, Tensor[] d_biases, Tensor[] d_feedback, Tensor[] free_states, Tensor[] "
      "nudged_states)");

  // Free phase from zeros, then nudged steps each followed by  p <- p + lr_l (contrast - weight_decay p)  of every
  // parameter, in place; symmetric: nudged_steps with +beta, as many without nudge or update, as many with -beta.
  // lr: per connection. Writes the states at the ends of the phases, as ep_step returns them, into free_states and
  // nudged_states ([B, n_l] each; twice as many nudged ones when symmetric).
  m.def(
      "cep_step(Tensor x, Tensor(a!)[] weights, Tensor(b!)[] biases, Tensor(c!)[] feedback_weights, Tensor target, "
      "Tensor(d!)[] free_states, Tensor(e!)[] nudged_states, *, int free_steps, int nudged_steps, float beta, "
      "str nudge_at, str loss, float[] lr, bool symmetric, bool shared_update, float weight_decay, " CEPROP_DYNAMICS
      ") -> ()");
}

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> facts;
  std::string runnable;
  for (const std::string& name : ceprop::runnable_kernels()) runnable += (runnable.empty() ? "" : ", ") + name;
  try {
    facts["cpu_kernels"] = ceprop::chosen_kernels().name;
  } catch (const std::invalid_argument& error) {
    facts["cpu_kernels"] = std::string("none: ") + error.what();
  }
  facts["cpu_kernels_runnable"] = runnable;
  facts["compiler"] = __VERSION__;
  facts["built_for_torch"] = TORCH_VERSION;
#ifdef CEPROP_WITH_CUDA
  facts["cuda"] = ceprop::cuda_build_facts() + " (no kernels yet)";
#else
  facts["cuda"] = "not built";
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &build_info, "What this library was built for and which kernels it runs, as a dict of strings.");
}
