// 16 bytes: what a thread loads or stores at once.
#pragma once

#include "../device.h"

namespace ceprop::cuda {

inline constexpr int block_threads = 256;

template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T v[size];

  __device__ __forceinline__ Pack& operator+=(const Pack& other) {
#pragma unroll
    for (int j = 0; j < size; ++j) v[j] += other.v[j];
    return *this;
  }
  __device__ __forceinline__ Pack& operator-=(const Pack& other) {
#pragma unroll
    for (int j = 0; j < size; ++j) v[j] -= other.v[j];
    return *this;
  }
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// The first `there` numbers of a pack that may not be aligned, then zeros.
template <class T>
__device__ __forceinline__ Pack<T> load_some(const T* from, int there) {
  Pack<T> pack{};
  if (there >= Pack<T>::size && reinterpret_cast<uintptr_t>(from) % 16 == 0) return load_pack(from);
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j)
    if (j < there) pack.v[j] = from[j];
  return pack;
}

// Only the first `there` numbers of a pack, to memory that may not be aligned.
template <class T>
__device__ __forceinline__ void store_some(T* to, const Pack<T>& pack, int there) {
  if (there >= Pack<T>::size && reinterpret_cast<uintptr_t>(to) % 16 == 0) return store_pack(to, pack);
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j)
    if (j < there) to[j] = pack.v[j];
}

}  // namespace ceprop::cuda
