// Where the states of a step lie, and how its blocks wait for each other.
//
// Both types give the row [columns] of a unit's state and of what its neighbours see of it, by buffer and layer; sync()
// ends a step: what any thread wrote before it, to rows or to global memory, every thread sees after it.
#pragma once

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

// The tiles of all layers are numbered in a row, those of half 0 first.
template <class T>
__device__ __forceinline__ int tiles_of(const Problem<T>& problem, int layer) {
  return (problem.widths[layer + 1] + tile_units - 1) / tile_units;
}
template <class T>
__device__ __forceinline__ int halves_of(const Problem<T>& problem) {
  return problem.asynchronous ? 2 : 1;
}

// Keeps the states in global memory, for any number of blocks.
template <class T>
class GridStates {
 public:
  static constexpr bool in_shared_memory = false;
  // Where in a tile of `packs` packs a unit the threads of a block find theirs: neighbours side by side in memory.
  __device__ static int unit_of(int index, int packs) { return index / packs; }
  __device__ static int pack_of(int index, int packs) { return index % packs; }

  __device__ GridStates(const Problem<T>& problem, void*) : problem_(problem) {}

  __device__ T* state(int buffer, int layer, int unit) const {
    return problem_.workspace.state[buffer][layer] + static_cast<int64_t>(unit) * problem_.layout.columns;
  }
  __device__ T* seen(int buffer, int layer, int unit) const {
    return problem_.workspace.seen[buffer][layer] + static_cast<int64_t>(unit) * problem_.layout.columns;
  }
  __device__ static void sync(CALLED_FROM) { cooperative_groups::this_grid().sync(CALLER); }

 private:
  const Problem<T>& problem_;
};

#if DEVICE_HAS_CLUSTERS
// Keeps them in the shared memory of the blocks that own the units, of one cluster: [own unit][unit_states], where rows
// of [state, seen][buffer][columns] begin some packs late, each unit's so that 8 threads never meet in a bank, whether
// they read 8 packs of a unit, the same pack of 8 units, or what follows each other in a product's sums; see
// python_tests/cuda_emulated/test_cuda_banks.py.
template <class T>
class ClusterStates {
 public:
  static constexpr bool in_shared_memory = true;
  // 8 units' packs, then their next ones: other banks, and whole sectors where the same is in global memory.
  __device__ static int unit_of(int index, int) { return index % 8 + index / 16 % 2 * 8; }
  __device__ static int pack_of(int index, int) { return index / 32 * 2 + index / 8 % 2; }

  __device__ ClusterStates(const Problem<T>& problem, void* memory)
      : problem_(problem), own_(static_cast<T*>(memory)) {}

  __device__ T* state(int buffer, int layer, int unit) const { return row(buffer, layer, unit, 0); }
  __device__ T* seen(int buffer, int layer, int unit) const {
    return row(buffer, layer, unit, problem_.rules[layer].dynamics == Dynamics::energy ? 1 : 0);
  }
  __device__ static void sync(CALLED_FROM) { cooperative_groups::this_cluster().sync(CALLER); }

 private:
  __device__ T* row(int buffer, int layer, int unit, int which) const {
    const Layout& layout = problem_.layout;
    const int tile = layout.first_tile[layer] + unit / tile_units;
    const int64_t own = layout.slot[tile] * tile_units + unit % tile_units;
    return cooperative_groups::this_cluster().map_shared_rank(own_, layout.owner[tile]) + own * layout.unit_states +
           shift(unit % tile_units) + (which * state_buffers + buffer) * layout.columns;
  }
  // Numbers before a unit's states. Sums of a pass lie by fours of units and then by packs, 8 or what is left of them
  // beside each other (tiles.cuh): with 2 or 6 left over, fours that are side by side must not begin 4 packs apart.
  __device__ int shift(int unit) const {
    constexpr int pack = 16 / sizeof(T);
    const int left = problem_.layout.pass / pack % 8;
    const int packs = left % 4 == 0 ? (left + 1) * unit : left * (unit / 4) + unit % 4 + unit % 4 / 2 * 2;
    return packs % 8 * pack;
  }

  const Problem<T>& problem_;
  T* own_;
};
#endif

}  // namespace ceprop::cuda
