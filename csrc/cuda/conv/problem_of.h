// The argument of the kernel for a call on a chain with convolutions. No torch, no CUDA.
#pragma once

#include <type_traits>

#include "../problem_of.h"
#include "launch_plan.h"

namespace ceprop::cuda::conv {

template <class Call>
Shape shape_of(const Call& call, int64_t number_bytes) {
  const auto& network = call.network;
  return {network.shape, network.free_feedback, has_energy(network.rules), call.batch.size, number_bytes};
}

// `memory`: plan.workspace_bytes of the device's global memory, 256-byte aligned.
template <class Call>
auto problem_of(const Call& call, const Plan& plan, void* memory) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  Problem<T> problem{};
  give(problem, call);
  problem.layout = plan.layout;
  std::copy(plan.links.begin(), plan.links.end(), problem.links);
  planning::lay_out(shape_of(call, sizeof(T)), plan.links, plan.layout, problem.workspace, memory);
  return problem;
}

}  // namespace ceprop::cuda::conv
