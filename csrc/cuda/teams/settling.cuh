// When a phase may end before its steps: the blocks of a grid agree on whether any unit still moves.
#pragma once

#include "problem.h"
#include "team.cuh"

namespace ceprop::cuda::teams {

// Whether a phase ends after `count` steps; `stays`: so does what this thread moved in the last. All threads of a team
// that has all samples ask after every step. flags: [2][most_blocks].
template <class T, class Team>
__device__ __forceinline__ bool may_stop(const Problem<T>& p, const Team& team, bool stays, int count, int* flags) {
  if (p.limit < 0 || count % steps_per_check != 0) return false;
  const bool all = __syncthreads_and(stays);
  // Two rows of flags, in turn: a fast block may set the next before a slow one has read this.
  flags += count / steps_per_check % 2 * most_blocks;
  if (threadIdx.x == 0) flags[blockIdx.x] = all;
  team.meet();
  bool settled = true;
  for (int block = static_cast<int>(threadIdx.x); block < static_cast<int>(gridDim.x);
       block += static_cast<int>(blockDim.x))
    settled = settled && __ldcg(flags + block);
  return __syncthreads_and(settled);
}

}  // namespace ceprop::cuda::teams
