// Atomics, loads and stores with cache hints, asynchronous copies. Inlined, so that reports name the lines of kernels.
#pragma once

namespace cuda_emulation {

template <class T, class Update>
CUDA_EMULATION_NO_RACE_CHECK T atomic_update(T* address, Update update) {
  atomic_operation(address, sizeof(T));
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace cuda_emulation

#define CUDA_EMULATION_ATOMIC(name, expression)                                            \
  template <class T>                                                                       \
  CUDA_EMULATION_NO_RACE_CHECK T name(T* address, std::type_identity_t<T> value) {         \
    const auto update = [=](T old) CUDA_EMULATION_NO_RACE_CHECK { return T(expression); }; \
    return cuda_emulation::atomic_update(address, update);                                 \
  }
CUDA_EMULATION_ATOMIC(atomicAdd, old + value)
CUDA_EMULATION_ATOMIC(atomicSub, old - value)
CUDA_EMULATION_ATOMIC(atomicExch, (static_cast<void>(old), value))
CUDA_EMULATION_ATOMIC(atomicMin, old < value ? old : value)
CUDA_EMULATION_ATOMIC(atomicMax, old > value ? old : value)
CUDA_EMULATION_ATOMIC(atomicAnd, old& value)
CUDA_EMULATION_ATOMIC(atomicOr, old | value)
CUDA_EMULATION_ATOMIC(atomicXor, old ^ value)
CUDA_EMULATION_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef CUDA_EMULATION_ATOMIC

template <class T>
CUDA_EMULATION_NO_RACE_CHECK T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const auto update = [=](T old) CUDA_EMULATION_NO_RACE_CHECK { return old == expected ? value : old; };
  return cuda_emulation::atomic_update(address, update);
}

template <class T>
__forceinline__ T __ldg(const T* from) {
  return *from;
}
template <class T>
__forceinline__ T __ldca(const T* from) {
  return *from;
}
template <class T>
__forceinline__ T __ldcg(const T* from) {
  return *from;
}
template <class T>
__forceinline__ T __ldcs(const T* from) {
  return *from;
}
template <class T>
__forceinline__ void __stcg(T* to, std::type_identity_t<T> value) {
  *to = value;
}
template <class T>
__forceinline__ void __stcs(T* to, std::type_identity_t<T> value) {
  *to = value;
}

// Lands at some time not later than the wait for it.
__forceinline__ void __pipeline_memcpy_async(void* destination, const void* source, std::size_t bytes,
                                             std::size_t zero_fill = 0) {
  if (bytes != 4 && bytes != 8 && bytes != 16) cuda_emulation::fail("__pipeline_memcpy_async: not of 4, 8 or 16 bytes");
  if (zero_fill > bytes) cuda_emulation::fail("__pipeline_memcpy_async: fills more than it copies");
  if (reinterpret_cast<std::uintptr_t>(destination) % bytes || reinterpret_cast<std::uintptr_t>(source) % bytes)
    cuda_emulation::fail("__pipeline_memcpy_async: misaligned address");
  cuda_emulation::asynchronous_copy(destination, source, bytes, zero_fill);
}
inline void __pipeline_commit() { cuda_emulation::asynchronous_commit(); }
inline void __pipeline_wait_prior(unsigned batches) { cuda_emulation::asynchronous_wait(batches); }
