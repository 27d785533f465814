// What every kernel file includes: CUDA's headers, or the emulation that tests run the same source under.
#pragma once

#include <type_traits>

#ifndef CUDA_EMULATION
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>
#endif

// Clusters of blocks exist on sm_90 and newer. Code for what an architecture lacks is left out of its binary; the
// planner never launches it there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DEVICE_HAS_CLUSTERS 1
#else
#define DEVICE_HAS_CLUSTERS 0
#endif

// Parameters that tell the emulation where a barrier was called: a test leaves each out in turn.
#ifdef CUDA_EMULATION
#define CALLED_FROM CUDA_EMULATION_HERE
#define CALLER file, line
#define AND_CALLED_FROM , CUDA_EMULATION_HERE
#define AND_CALLER , CALLER
#else
#define CALLED_FROM
#define CALLER
#define AND_CALLED_FROM
#define AND_CALLER
#endif

// A raw __shared__ cannot be emulated: where the memory lies depends on the block that runs.
#ifdef CUDA_EMULATION
template <class T>
inline T* dynamic_shared_memory() {
  return static_cast<T*>(cuda_emulation::builtins.dynamic_shared);
}
#else
template <class T>
__device__ __forceinline__ T* dynamic_shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}
#endif

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) & 31; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / 32; }

// Hides from the compiler where a number comes from: what follows from the number is worked out where it is needed, and
// takes no register from the loops before; the number itself is not worked out again.
template <class Number>
__device__ __forceinline__ Number hidden(Number number) {
#ifndef CUDA_EMULATION
  if constexpr (std::is_same_v<Number, double>)
    asm volatile("" : "+d"(number));
  else if constexpr (std::is_same_v<Number, float>)
    asm volatile("" : "+f"(number));
  else
    asm volatile("" : "+r"(number));
#endif
  return number;
}
