// The kernel of a team runs relax and EP of chains of dense layers, from the first step to the last, in one launch.
#pragma once

#include "contrast.cuh"
#include "relaxation.cuh"

namespace ceprop::cuda::teams {

template <class T, int Samples, class Team>
__device__ __forceinline__ void run(const Problem<T>& p) {
  const bool learns = p.stages.op != Op::relax;
  Relaxation<T, Samples, Team> relaxation(p);
  if (learns) relaxation.sanity.begin();
  relaxation.load();
  for (int round = 0; round < p.layout.rounds; ++round) {
    const int first = (round * p.layout.teams + relaxation.team()) * p.layout.samples_at_once();
    if (first < p.batch) relaxation.run(first);
  }
  relaxation.end();
  bool holds = true;
  if (learns) {
    const auto grid = cooperative_groups::this_grid();
    grid.sync();  // nobody's word comes before the first block has begun
    relaxation.sanity.tell();
    grid.sync();
    holds = relaxation.sanity.holds();
    Contrast<T>(p, dynamic_shared_memory<T>(), holds).learn();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0)
    for (int index = 0; index < p.stages.count; ++index) p.steps_used[index] = holds ? p.stages.stage[index].steps : -1;
}

// These names of the kinds of team exist in every pass of the compiler, as their types do not.
struct InBlock {};
struct InCluster {};
template <class Name>
struct TeamOf {
  using type = void;  // not on this architecture
};
template <>
struct TeamOf<InBlock> {
  using type = OneBlock;
};
#if DEVICE_HAS_CLUSTERS
template <>
struct TeamOf<InCluster> {
  using type = Cluster;
};
#endif

template <class T, int Samples, class TeamName>
__global__ void __launch_bounds__(32 * most_warps(sizeof(T)), 1) run_team(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
  using Team = typename TeamOf<TeamName>::type;
  if constexpr (std::is_void_v<Team>)
    __trap();
  else
    run<T, Samples, Team>(problem);
}

}  // namespace ceprop::cuda::teams
