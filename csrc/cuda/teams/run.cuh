// The kernels of teams run the ops on chains of dense layers, from the first step to the last, in one launch.
#pragma once

#undef NDEBUG  // see refuse_wrong_labels
#include <cassert>

#include "contrast.cuh"
#include "relaxation.cuh"

namespace ceprop::cuda::teams {

template <class T, int Samples, class Team>
__device__ __forceinline__ void run_rounds(Relaxation<T, Samples, Team, false>& relaxation, int phases) {
  const Layout& layout = relaxation.jobs.layout;
  const int batch = relaxation.jobs.p.batch, team = relaxation.jobs.team.index();
  relaxation.load();
  for (int round = 0; round < layout.rounds; ++round) {
    const int first = (round * layout.teams + team) * layout.samples_at_once();
    if (team >= layout.teams || first >= batch) continue;
    relaxation.template run<0>(first, phases);
    if (relaxation.jobs.p.stages.steps_learn) relaxation.store_for_all(Own::constant);
  }
  relaxation.end();
}

template <class T>
__device__ __forceinline__ void note_failure(const Problem<T>& p) {
  if (blockIdx.x == 0 && threadIdx.x == 0)
    for (int index = 0; index < p.stages.count; ++index) p.steps_used[index] = -1;
}

// Runs relax and EP, whose weights rest.
template <class T, int Samples, class Team>
__device__ __forceinline__ void run(const Problem<T>& p) {
  const bool learns = p.stages.op != Op::relax;
  Relaxation<T, Samples, Team, false> relaxation(p, p.layout);
  if (learns) relaxation.sanity.begin();
  run_rounds(relaxation, p.stages.count);
  if (!learns) return;
  const auto grid = cooperative_groups::this_grid();
  if constexpr (!std::is_same_v<Team, Grid>) grid.sync();  // nobody's word comes before the first block has begun
  relaxation.sanity.tell();
  grid.sync();
  const bool holds = relaxation.sanity.holds();
  Contrast<T>(p).learn(holds);
  if (!holds) note_failure(p);
}

// Returns how much C-EP's updates have left of the input's weights as they were.
template <class T>
__device__ __forceinline__ double kept_of_input(const Problem<T>& p) {
  double keep = 1;
  for (int index = 0; index < p.stages.count; ++index)
    for (int64_t i = p.stages.stage[index].learns ? __ldcg(p.steps_used + index) : 0; i > 0; --i)
      keep *= 1 - p.rate[0] * p.weight_decay;
  return keep;
}

// Runs C-EP, or EP that adds up the contrasts of its steps: the free phase by such teams, then the nudged phases by one
// that has all samples.
template <class T, int Samples, class Team, class MovingTeam>
__device__ __forceinline__ void run_continual(const Problem<T>& p) {
  constexpr bool changes = !std::is_same_v<Team, Grid>;
  const auto grid = cooperative_groups::this_grid();
  Sanity<T>(p, p.broken).begin();
  using Moving = Relaxation<T, most_samples(sizeof(T)), MovingTeam, true>;
  if (p.stages.op == Op::cep_step) ContinualUpdate<typename Moving::Where>::prepare(p);
  if constexpr (changes) {
    Relaxation<T, Samples, Team, false> resting(p, p.layout);
    run_rounds(resting, 1);
    grid.sync();  // all free states are there
    resting.sanity.tell();
  }
  Moving moving(p, p.moving);
  const bool moves = moving.jobs.team.index() == 0;
  if (moves) {
    moving.load();
    moving.template run<changes>(0, p.stages.count);
    moving.end();
    moving.sanity.tell();
    moving.store_for_all(Own::sum);
  }
  grid.sync();
  const bool holds = moving.sanity.holds();
  if (!holds) {
    if (p.stages.op == Op::ep_step) Contrast<T>(p).learn(false);
    note_failure(p);
    return;
  }
  if (moves) moving.store_weights();
  Contrast<T>(p).move_input(kept_of_input(p));
}

// A class that does not exist ends in an assertion: the host cannot look without waiting. It comes first: from there it
// takes no register of the steps, which would spill on sm_75.
template <class T>
__device__ __forceinline__ void refuse_wrong_labels(const Problem<T>& p) {
  if (!p.labels || blockIdx.x != 0) return;
  for (int sample = static_cast<int>(threadIdx.x); sample < p.batch; sample += static_cast<int>(blockDim.x))
    assert(p.labels[sample] >= 0 && p.labels[sample] < p.widths[p.layers]);
}

// These names of the kinds of team exist in every pass of the compiler, as their types do not.
struct InBlock {};
struct InCluster {};
struct InGrid {};
template <class Name>
struct TeamOf {
  using type = void;  // not on this architecture
};
template <>
struct TeamOf<InBlock> {
  using type = OneBlock;
};
template <>
struct TeamOf<InGrid> {
  using type = Grid;
};
#if DEVICE_HAS_CLUSTERS
template <>
struct TeamOf<InCluster> {
  using type = Cluster;
};
#endif

// `MovingName`: the team in which C-EP's weights move; void: they rest.
template <class T, int Samples, class TeamName, class MovingName>
__global__ void __launch_bounds__(32 * most_warps(sizeof(T)), 1) run_team(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
  using Team = typename TeamOf<TeamName>::type;
  if constexpr (std::is_void_v<Team>) {
    __trap();
  } else {
    refuse_wrong_labels(problem);
    if constexpr (std::is_void_v<MovingName>)
      run<T, Samples, Team>(problem);
    else
      run_continual<T, Samples, Team, typename TeamOf<MovingName>::type>(problem);
  }
}

}  // namespace ceprop::cuda::teams
