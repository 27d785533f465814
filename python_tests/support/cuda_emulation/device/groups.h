// Cooperative groups: block, grid, cluster, tiles of a warp.
#pragma once

namespace cooperative_groups {

inline unsigned linear_thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

struct thread_block {
  void sync(CUDA_EMULATION_HERE) const { cuda_emulation::block_barrier(file, line); }
  unsigned thread_rank() const { return linear_thread(); }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
  unsigned num_threads() const { return size(); }
  dim3 group_index() const { return blockIdx; }
  dim3 thread_index() const { return threadIdx; }
};
inline thread_block this_thread_block() { return {}; }

struct grid_group {
  void sync(CUDA_EMULATION_HERE) const { cuda_emulation::grid_barrier(file, line); }
  bool is_valid() const { return true; }
  unsigned long long num_blocks() const { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  unsigned long long block_rank() const {
    return blockIdx.x + 1ull * gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
  }
  unsigned long long size() const { return num_blocks() * this_thread_block().size(); }
  unsigned long long num_threads() const { return size(); }
  unsigned long long thread_rank() const { return block_rank() * this_thread_block().size() + linear_thread(); }
};
inline grid_group this_grid() { return {}; }

#if CUDA_EMULATION_ARCH >= 900
struct cluster_group {
  void sync(CUDA_EMULATION_HERE) const { cuda_emulation::cluster_barrier(file, line); }
  dim3 dim_blocks() const { return cuda_emulation::cluster_dimension(); }
  unsigned num_blocks() const { return dim_blocks().x * dim_blocks().y * dim_blocks().z; }
  unsigned block_rank() const { return cuda_emulation::cluster_rank(); }
  unsigned num_threads() const { return num_blocks() * this_thread_block().size(); }
  unsigned thread_rank() const { return block_rank() * this_thread_block().size() + linear_thread(); }
  template <class T>
  T* map_shared_rank(T* pointer, unsigned rank) const {
    return static_cast<T*>(cuda_emulation::map_shared(pointer, rank));
  }
};
inline cluster_group this_cluster() { return {}; }
#endif

template <unsigned Size>
struct thread_block_tile {
  static_assert(Size > 0 && Size <= 32 && (Size & (Size - 1)) == 0);
  static constexpr unsigned size() { return Size; }
  static constexpr unsigned num_threads() { return Size; }
  unsigned thread_rank() const { return cuda_emulation::lane_index() % Size; }
  unsigned meta_group_rank() const { return linear_thread() / Size; }
  unsigned meta_group_size() const { return (this_thread_block().size() + Size - 1) / Size; }

  void sync(CUDA_EMULATION_HERE) const { cuda_emulation::warp_barrier(mask(), file, line); }
  template <class T>
  T shfl(T value, int source, CUDA_EMULATION_HERE) const {
    return __shfl_sync(mask(), value, source, Size, file, line);
  }
  template <class T>
  T shfl_xor(T value, unsigned bits, CUDA_EMULATION_HERE) const {
    return __shfl_xor_sync(mask(), value, static_cast<int>(bits), Size, file, line);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, CUDA_EMULATION_HERE) const {
    return __shfl_down_sync(mask(), value, delta, Size, file, line);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, CUDA_EMULATION_HERE) const {
    return __shfl_up_sync(mask(), value, delta, Size, file, line);
  }

 private:
  static unsigned mask() { return (0xffffffffu >> (32 - Size)) << (cuda_emulation::lane_index() & ~(Size - 1)); }
};

template <unsigned Size>
thread_block_tile<Size> tiled_partition(const thread_block&) {
  return {};
}

template <class Group>
void sync(const Group& group, CUDA_EMULATION_HERE) {
  group.sync(file, line);
}

}  // namespace cooperative_groups
