// The fused kernels are not differentiable: what they return says so when autograd comes to it, not before.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

namespace ceprop {

struct FusedKernels : torch::autograd::Function<FusedKernels> {
  using Tensors = torch::autograd::variable_list;

  // By a pointer: these are no inputs.
  static Tensors forward(torch::autograd::AutogradContext*, const Tensors* outputs, at::TensorList) { return *outputs; }
  static Tensors backward(torch::autograd::AutogradContext*, const Tensors&) {
    TORCH_CHECK(false,
                "the fused kernels are not differentiable: train with EP, CEP or BPTT, or relax with "
                "backend='reference'");
  }
};

// Makes the `outputs` of a call, floating numbers all, results of its `inputs` for autograd, if one requires grad.
inline void refuse_gradients(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs) {
  FusedKernels::apply(&outputs, at::TensorList(inputs));
}

}  // namespace ceprop
