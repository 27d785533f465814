// What CUDA adds to the language: qualifiers and vector types.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
// Compiles in a third of the time. With CUDA_EMULATION_INLINES an instruction is in the function that it works for.
#ifdef CUDA_EMULATION_INLINES
#define __forceinline__ inline __attribute__((always_inline))
#else
#define __forceinline__ inline
#endif
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// No __shared__: every thread would get an array of its own, or all blocks the same one. What kernels use instead,
// dynamic_shared_memory, asks the runtime.

#define CUDA_EMULATION_NO_RACE_CHECK __attribute__((no_sanitize("thread")))
// The last parameters of everything that threads wait in: the place of the call. A function of a kernel's own that is
// to count as the place where its caller waits takes and passes on the same two.
#define CUDA_EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

#define CUDA_EMULATION_VECTORS(T, name)                      \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };         \
  struct alignas(16) name##4 { T x, y, z, w; };              \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATION_VECTORS(float, float)
CUDA_EMULATION_VECTORS(int, int)
CUDA_EMULATION_VECTORS(unsigned, uint)
CUDA_EMULATION_VECTORS(double, double)
#undef CUDA_EMULATION_VECTORS

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
