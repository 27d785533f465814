// Runs one call of the teams' kernels under the emulation. The seed also decides how many samples a group has, and how
// many clusters run at once.
#include "../../../csrc/cuda/teams/run.cuh"

#include "../../../csrc/cuda/teams/plan.h"
#include "calls.h"

using cuda::teams::Plan;

template <class T, int Samples, class Call>
void launch(const Call&, const Plan& plan, const cuda::teams::Problem<T>& problem, bool in_cluster) {
  const auto blocks = static_cast<unsigned>(plan.layout.blocks * plan.layout.teams);
  const cuda_emulation::LaunchConfiguration configuration{
      .grid = blocks,
      .block = static_cast<unsigned>(32 * plan.layout.warps),
      .dynamic_shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .cooperative = !std::is_same_v<Call, RelaxCall<T>>,
      .cluster = in_cluster ? static_cast<unsigned>(plan.layout.blocks) : 1};
  if (in_cluster)
    cuda_emulation::launch(configuration, cuda::teams::run_team<T, Samples, cuda::teams::InCluster>, problem);
  else
    cuda_emulation::launch(configuration, cuda::teams::run_team<T, Samples, cuda::teams::InBlock>, problem);
}

template <class T, class Call>
void plan_and_launch(const Call& call, const cuda::Device& given, const Wanted& wanted) {
  if (const std::string obstacle = cuda::teams::obstacle_of(call); !obstacle.empty())
    throw std::runtime_error(obstacle);
  auto& options = cuda_emulation::options;
  cuda::Device device = given;
  device.clusters = static_cast<int>(1 + options.seed / 2 % 3);
  const std::vector<int> counts = cuda::teams::samples_of_groups(sizeof(T));
  const int samples = counts[options.seed % counts.size()];
  const int blocks = wanted.cluster ? device.cluster_blocks : 1;
  options.multiprocessors = static_cast<unsigned>(std::max(device.multiprocessors, device.clusters * blocks));
  const auto plan = cuda::teams::planning::try_plan(device, cuda::shape_of(call, sizeof(T)), blocks, samples);
  if (!plan) throw std::runtime_error("does not fit");
  cuda_emulation::DeviceArray<int> broken(1);
  const auto problem = cuda::teams::problem_of(call, *plan, broken.get());
  if constexpr (sizeof(T) == 8) {
    launch<T, 2>(call, *plan, problem, wanted.cluster);
  } else if (samples == 1) {
    launch<T, 1>(call, *plan, problem, wanted.cluster);
  } else if (samples == 3) {
    launch<T, 3>(call, *plan, problem, wanted.cluster);
  } else {
    launch<T, 4>(call, *plan, problem, wanted.cluster);
  }
}

int main(int, char** argv) { return run_program(argv); }
