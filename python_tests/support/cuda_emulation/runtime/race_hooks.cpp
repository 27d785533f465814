// What code compiled with -fsanitize=thread calls. libtsan, which defines the same, is not linked.
#if defined(__SANITIZE_THREAD__)
#error "the runtime must be compiled without -fsanitize=thread"
#endif
#include "state.h"

namespace {

inline void access(const void* address, std::size_t bytes, bool write, const void* caller) {
  using namespace cuda_emulation;
  if (!runtime.tracking) return;
  const Untracked untracked;
  record_access(address, bytes, write, caller);
}

}  // namespace

extern "C" {

#define HOOK(function, bytes, write) \
  void function(void* address) { access(address, bytes, write, __builtin_return_address(0)); }
#define HOOKS(bytes)                               \
  HOOK(__tsan_read##bytes, bytes, false)           \
  HOOK(__tsan_write##bytes, bytes, true)           \
  HOOK(__tsan_unaligned_read##bytes, bytes, false) \
  HOOK(__tsan_unaligned_write##bytes, bytes, true) \
  HOOK(__tsan_volatile_read##bytes, bytes, false)  \
  HOOK(__tsan_volatile_write##bytes, bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* address, unsigned long bytes) {
  access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  access(address, bytes, true, __builtin_return_address(0));
}

// Comes before all constructors of the program.
void __tsan_init() { cuda_emulation::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomics of the host, as in the guards of static variables.
#define HOST_ATOMICS(bits, T)                                                                                       \
  T __tsan_atomic##bits##_load(const volatile T* from, int) { return __atomic_load_n(from, __ATOMIC_SEQ_CST); }     \
  void __tsan_atomic##bits##_store(volatile T* to, T value, int) { __atomic_store_n(to, value, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                                                  \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                                        \
  }                                                                                                                 \
  T __tsan_atomic##bits##_fetch_add(volatile T* at, T value, int) {                                                 \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                                 \
  T __tsan_atomic##bits##_fetch_sub(volatile T* at, T value, int) {                                                 \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* at, T* expected, T value, int, int) {               \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
  }
HOST_ATOMICS(8, char)
HOST_ATOMICS(32, int)
HOST_ATOMICS(64, long)

}  // extern "C"
