// 16 bytes: what a thread loads or stores at once.
#pragma once

#include "device.h"
#include "problem.h"

namespace ceprop::cuda {

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

// A thread brings packs `first`, first + step, ... below `count` from load(index) to store(index, pack), some of them
// under way at once.
template <class Load, class Store>
__device__ __forceinline__ void bring(int first, int count, int step, const Load& load, const Store& store) {
  constexpr int at_once = 2;
  for (; first < count; first += at_once * step) {
    decltype(load(0)) packs[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (first + i * step < count) packs[i] = load(first + i * step);
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (first + i * step < count) store(first + i * step, packs[i]);
  }
}
// All packs, by a block's threads.
template <class Load, class Store>
__device__ __forceinline__ void bring(int count, const Load& load, const Store& store) {
  bring(static_cast<int>(threadIdx.x), count, block_threads, load, store);
}

}  // namespace ceprop::cuda
