// Runs one call of the kernels of dense networks under the emulation.
#include "../../../csrc/cuda/run_op.cuh"
#include "calls.h"

using cuda::Plan;

template <class T, class Tile>
void launch(const Plan& plan, const cuda::Problem<T>& problem) {
  const unsigned blocks = plan.layout.blocks;
  const bool in_cluster = plan.exchange == cuda::Exchange::cluster;
  const cuda_emulation::LaunchConfiguration configuration{
      .grid = blocks,
      .block = cuda::block_threads,
      .dynamic_shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .cooperative = !in_cluster,
      .cluster = in_cluster ? blocks : 1};
  if (in_cluster)
    cuda_emulation::launch(configuration, cuda::run_op<T, Tile, cuda::InCluster>, problem);
  else
    cuda_emulation::launch(configuration, cuda::run_op<T, Tile, cuda::InGrid>, problem);
}

template <class T, class Call>
void plan_and_launch(const Call& call, const cuda::Device& device, const Wanted& wanted) {
  const std::optional<Plan> plan =
      cuda::planning::try_plan(device, cuda::shape_of(call, sizeof(T)), wanted.precision,
                               wanted.cluster ? cuda::Exchange::cluster : cuda::Exchange::grid, wanted.resident);
  if (!plan) throw std::runtime_error("does not fit");
  cuda_emulation::DeviceArray<unsigned char> workspace(plan->workspace_bytes);
  const cuda::Problem<T> problem = cuda::problem_of(call, *plan, workspace.get());
  if (wanted.precision == Precision::exact)
    launch<T, cuda::Exact>(*plan, problem);
  else if constexpr (sizeof(T) == 4) {
    if (wanted.precision == Precision::tf32)
      launch<T, cuda::Tf32>(*plan, problem);
    else
      launch<T, cuda::Bf16>(*plan, problem);
  }
}

int main(int, char** argv) { return run_program(argv); }
