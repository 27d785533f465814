// Runs one call of the teams' kernels under the emulation. The seed also decides how many samples a group has, how many
// clusters run at once, and whether a grid has little shared memory, so that it copies states part by part.
#include "../../../csrc/cuda/teams/run.cuh"

#include "../../../csrc/cuda/teams/problem_of.h"
#include "calls.h"

using namespace ceprop::cuda;
using namespace ceprop::cuda::teams;

template <class T, int Samples, class Name, TeamKind Kind>
void launch(const Plan& plan, const Problem<T>& problem) {
  const TeamKind kind = plan.layout.kind;
  const cuda_emulation::LaunchConfiguration configuration{
      .grid = static_cast<unsigned>(plan.blocks),
      .block = static_cast<unsigned>(32 * plan.warps),
      .dynamic_shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .cooperative = kind == TeamKind::grid || problem.stages.op != Op::relax,
      .cluster = kind == TeamKind::cluster ? static_cast<unsigned>(plan.layout.blocks) : 1};
  if (!plan.moving.continual) return cuda_emulation::launch(configuration, run_team<T, Samples, Name, void>, problem);
  if constexpr (may_move(Kind, Samples, sizeof(T)))
    if (plan.moving.kind == Kind)
      return cuda_emulation::launch(configuration, run_team<T, Samples, Name, Name>, problem);
  cuda_emulation::launch(configuration, run_team<T, Samples, Name, InGrid>, problem);
}
template <class T, int Samples>
void launch(const Plan& plan, const Problem<T>& problem) {
  if (plan.layout.kind == TeamKind::block)
    launch<T, Samples, InBlock, TeamKind::block>(plan, problem);
  else
    launch<T, Samples, InCluster, TeamKind::cluster>(plan, problem);
}

template <class T, class Call>
void plan_and_launch(const Call& call, const Wanted& wanted) {
  if (const std::string obstacle = cuda::teams::obstacle_of(call); !obstacle.empty())
    throw std::runtime_error(obstacle);
  auto& options = cuda_emulation::options;
  const auto kind = static_cast<TeamKind>(wanted.team % 3);
  const int clusters = static_cast<int>(1 + options.seed / 2 % 3);
  const Device device{wanted.multiprocessors, wanted.shared_bytes, wanted.cluster_blocks, clusters};
  const std::vector<int> counts = samples_of_groups(sizeof(T));
  const int samples = kind == TeamKind::grid ? counts.back() : counts[options.seed % counts.size()];
  bool by_grid = wanted.team >= 2 || !may_move(kind, samples, sizeof(T));
  const int blocks = kind == TeamKind::grid      ? device.multiprocessors
                     : kind == TeamKind::cluster ? device.cluster_blocks
                                                 : 1;
  if (kind == TeamKind::cluster) options.multiprocessors = static_cast<unsigned>(clusters * blocks);
  std::optional<Plan> plan = planning::try_plan(device, shape_of(call), kind, blocks, samples, by_grid);
  if (!plan && !by_grid)  // too many samples for one team
    plan = planning::try_plan(device, shape_of(call), kind, blocks, samples, by_grid = true);
  if (!plan) throw std::runtime_error("does not fit");
  if (kind == TeamKind::grid && options.seed % 2 == 1)
    for (Device less = device; less.shared_bytes = plan->shared_bytes - 1, less.shared_bytes > 0;) {
      const auto smaller = planning::try_plan(less, shape_of(call), kind, blocks, samples, by_grid);
      if (!smaller || smaller->layout.rounds > plan->layout.rounds) break;
      plan = smaller;
    }
  cuda_emulation::DeviceArray<unsigned char> workspace(plan->workspace_bytes);
  const Problem<T> problem = problem_of(call, *plan, workspace.get());
  constexpr int most = most_samples(sizeof(T));
  if (kind == TeamKind::grid) return launch<T, most, InGrid, TeamKind::grid>(*plan, problem);
  if constexpr (sizeof(T) == 4) {
    if (samples == 1) return launch<T, 1>(*plan, problem);
    if (samples == 3) return launch<T, 3>(*plan, problem);
  }
  launch<T, most>(*plan, problem);
}

int main(int, char** argv) { return run_program(argv); }
