// When a phase may end before its steps: the blocks agree on whether any unit still moves.
#pragma once

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

// Whether a phase ends after `count` steps; `stays`: so does what this thread moved in the last. Every thread has to
// ask after every step. flags: [2][number_of_blocks]; blocks.sync() is a barrier of them all.
template <class T, class Blocks>
__device__ bool may_stop(const Given<T>& p, const Blocks& blocks, bool stays, int count, int number_of_blocks,
                         int* flags) {
  if (p.limit < 0 || count % steps_per_check != 0) return false;
  const bool all = __syncthreads_and(stays);
  // Two rows of flags, in turn: a fast block may set the next before a slow one has read this.
  flags += count / steps_per_check % 2 * number_of_blocks;
  if (threadIdx.x == 0) flags[blockIdx.x] = all;
  blocks.sync();
  bool settled = true;
  for (int block = static_cast<int>(threadIdx.x); block < number_of_blocks; block += block_threads)
    settled = settled && __ldcg(flags + block);
  return __syncthreads_and(settled);
}

}  // namespace ceprop::cuda
