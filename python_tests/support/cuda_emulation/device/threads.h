// Built-in variables, barriers, and the primitives by which the lanes of a warp exchange values.
#pragma once

inline constexpr uint3& threadIdx = cuda_emulation::builtins.thread_index;
inline constexpr uint3& blockIdx = cuda_emulation::builtins.block_index;
inline constexpr dim3& blockDim = cuda_emulation::builtins.block_dimension;
inline constexpr dim3& gridDim = cuda_emulation::builtins.grid_dimension;
inline constexpr int warpSize = 32;

inline void __syncthreads(CUDA_EMULATION_HERE) { cuda_emulation::block_barrier(file, line); }
inline int __syncthreads_count(int predicate, CUDA_EMULATION_HERE) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::count, predicate != 0, file, line);
}
inline int __syncthreads_and(int predicate, CUDA_EMULATION_HERE) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::all, predicate != 0, file, line);
}
inline int __syncthreads_or(int predicate, CUDA_EMULATION_HERE) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::any, predicate != 0, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATION_HERE) {
  cuda_emulation::warp_barrier(mask, file, line);
}
inline void __threadfence() { cuda_emulation::memory_fence(); }
inline void __threadfence_block() { cuda_emulation::memory_fence(); }
inline void __threadfence_system() { cuda_emulation::memory_fence(); }
inline void __nanosleep(unsigned) { cuda_emulation::yield(); }
[[noreturn]] inline void __trap() { cuda_emulation::fail("__trap()"); }

namespace cuda_emulation {

template <class T>
struct Shuffle {
  T value, result;
  unsigned source;
};

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* name, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T>);
  const Combine combine = [](void** arguments, unsigned lanes) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      Shuffle<T>& own = *static_cast<Shuffle<T>*>(arguments[lane]);
      if (!(lanes >> own.source & 1))
        fail("lane " + std::to_string(lane) + " shuffles from lane " + std::to_string(own.source) +
             ", which takes no part (undefined value)");
      own.result = static_cast<Shuffle<T>*>(arguments[own.source])->value;
    }
  };
  Shuffle<T> own{value, value, source & 31};
  warp_collective(mask, name, &own, combine, file, line);
  return own.result;
}

// Lanes exchange within segments of `width`; a source beyond the own segment is the lane itself.
inline unsigned first_of_segment(int width) { return lane_index() & ~(unsigned(width) - 1); }
inline unsigned before_end_or_self(unsigned source, int width) {
  return source < first_of_segment(width) + unsigned(width) ? source : lane_index();
}

}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATION_HERE) {
  const unsigned from = cuda_emulation::first_of_segment(width) | (unsigned(source) & (unsigned(width) - 1));
  return cuda_emulation::shuffle(mask, value, from, "__shfl_sync", file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_EMULATION_HERE) {
  // Segments before the own one are within reach, as on a device.
  const unsigned from = cuda_emulation::before_end_or_self(cuda_emulation::lane_index() ^ unsigned(bits), width);
  return cuda_emulation::shuffle(mask, value, from, "__shfl_xor_sync", file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATION_HERE) {
  const unsigned from = cuda_emulation::before_end_or_self(cuda_emulation::lane_index() + delta, width);
  return cuda_emulation::shuffle(mask, value, from, "__shfl_down_sync", file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATION_HERE) {
  const unsigned lane = cuda_emulation::lane_index(), first = cuda_emulation::first_of_segment(width);
  const unsigned from = delta <= lane - first ? lane - delta : lane;
  return cuda_emulation::shuffle(mask, value, from, "__shfl_up_sync", file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATION_HERE) {
  struct Ballot {
    int predicate;
    unsigned result;
  };
  const cuda_emulation::Combine combine = [](void** arguments, unsigned lanes) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1 && static_cast<Ballot*>(arguments[lane])->predicate) result |= 1u << lane;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) static_cast<Ballot*>(arguments[lane])->result = result;
  };
  Ballot own{predicate, 0};
  cuda_emulation::warp_collective(mask, "__ballot_sync", &own, combine, file, line);
  return own.result;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATION_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATION_HERE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
