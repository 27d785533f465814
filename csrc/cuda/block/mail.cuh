// By mail the blocks of a cluster hand each other states: every store carries its own arrival, so that nobody needs a
// barrier of all threads or a fence. A mailbox counts the bytes that have come into a buffer of its block's shared
// memory.
//
// Places in shared memory are numbers of bytes from its begin; `Memory` reads there, `Peer` writes to another block's.
// All that the compiler is told about memory is here, each piece beside what stands for it under the emulation.
#pragma once

#include <type_traits>

#include "pack.cuh"

namespace ceprop::cuda {

// These are neighbouring units of one sample.
template <class T>
struct alignas(16) Four {
  T v[4];
};
struct alignas(16) Words {
  int v[4];
};
inline constexpr int mailbox_bytes = 16;

// The host's pass of the compiler reads the declarations as well.
#if DEVICE_HAS_CLUSTERS || !defined(__CUDA_ARCH__)
#define MAIL_EXISTS 1
#else
#define MAIL_EXISTS 0
#endif

#ifdef CUDA_EMULATION

// At most 16 bytes at once, as a device does.
template <class T>
__device__ __forceinline__ void move(const T* from, T* to) {
  if constexpr (sizeof(T) == 32) {
    const auto* halves = reinterpret_cast<const Words*>(from);
    reinterpret_cast<Words*>(to)[0] = halves[0];
    reinterpret_cast<Words*>(to)[1] = halves[1];
  } else {
    *to = *from;
  }
}

template <class Number>
__device__ __forceinline__ Number get_from_all(const char* at) {
  return *reinterpret_cast<const Number*>(at);
}
template <class Number>
__device__ __forceinline__ void put_for_all(char* at, const Number& number) {
  *reinterpret_cast<Number*>(at) = number;
}

class Memory {
 public:
  __device__ __forceinline__ Memory() : begin_(dynamic_shared_memory<char>()) {}
  template <class T>
  __device__ __forceinline__ T get(int place) const {
    T got;
    move(at<T>(place), &got);
    return got;
  }
  template <class T>
  __device__ __forceinline__ void put(int place, const T& value) const {
    move(&value, at<T>(place));
  }
  __device__ __forceinline__ void clear(int place, int bytes) const {
    for (int at = 4 * static_cast<int>(threadIdx.x); at < bytes; at += 4 * static_cast<int>(blockDim.x))
      put(place + at, 0.0f);
  }

  __device__ __forceinline__ void bring(int place, const char* from) const {
    __pipeline_memcpy_async(at<char>(place), from, 16);
  }

  __device__ __forceinline__ void open(int box, unsigned bytes) const {
    cuda_emulation::open_mailbox(begin_ + box, bytes);
  }
  __device__ __forceinline__ void close(int) const {}
  __device__ __forceinline__ void expect(int box, unsigned bytes) const {
    cuda_emulation::expect_in_mailbox(begin_ + box, bytes);
  }
  __device__ __forceinline__ void wait(int box, int use AND_CALLED_FROM) const {
    cuda_emulation::wait_for_mailbox(begin_ + box, use AND_CALLER);
  }

  template <class T>
  __device__ __forceinline__ T* at(int place) const {
    return reinterpret_cast<T*>(begin_ + place);
  }

 private:
  char* begin_;
};

class Peer {
 public:
  __device__ __forceinline__ Peer(const Memory& memory, unsigned rank)
      : begin_(cooperative_groups::this_cluster().map_shared_rank(memory.at<char>(0), rank)) {}
  template <class Value>
  __device__ __forceinline__ void push_if(unsigned wanted, int place, int box, const Value& value) const {
    if (wanted) push(place, box, value);
  }
  template <class Value>
  __device__ __forceinline__ void push(int place, int box, const Value& value) const {
    move(&value, reinterpret_cast<Value*>(begin_ + place));
    cuda_emulation::send_to_mailbox(begin_ + box, sizeof(Value));
  }

 protected:
  char* begin_;
};

#else

// Global memory that other blocks write, past the first-level cache.
template <class Number>
__device__ __forceinline__ Number get_from_all(const char* at) {
  if constexpr (std::is_same_v<Number, Four<float> >) {
    const float4 four = __ldcg(reinterpret_cast<const float4*>(at));
    return {four.x, four.y, four.z, four.w};
  } else if constexpr (std::is_same_v<Number, Four<double> >) {
    const double2 first = __ldcg(reinterpret_cast<const double2*>(at));
    const double2 second = __ldcg(reinterpret_cast<const double2*>(at) + 1);
    return {first.x, first.y, second.x, second.y};
  } else {
    return __ldcg(reinterpret_cast<const Number*>(at));
  }
}
template <class Number>
__device__ __forceinline__ void put_for_all(char* at, const Number& number) {
  if constexpr (std::is_same_v<Number, Four<float> >) {
    __stcg(reinterpret_cast<float4*>(at), float4{number.v[0], number.v[1], number.v[2], number.v[3]});
  } else if constexpr (std::is_same_v<Number, Four<double> >) {
    __stcg(reinterpret_cast<double2*>(at), double2{number.v[0], number.v[1]});
    __stcg(reinterpret_cast<double2*>(at) + 1, double2{number.v[2], number.v[3]});
  } else {
    __stcg(reinterpret_cast<Number*>(at), number);
  }
}

class Memory {
 public:
  __device__ __forceinline__ Memory()
      : begin_(hidden(static_cast<unsigned>(__cvta_generic_to_shared(dynamic_shared_memory<char>())))) {}

  template <class T>
  __device__ __forceinline__ T get(int place) const {
    T got;
    load(begin_ + place, got);
    return got;
  }
  template <class T>
  __device__ __forceinline__ void put(int place, const T& value) const {
    store(begin_ + place, value);
  }
  // All threads of the block call it.
  __device__ __forceinline__ void clear(int place, int bytes) const {
    for (int at = 4 * static_cast<int>(threadIdx.x); at < bytes; at += 4 * static_cast<int>(blockDim.x))
      put(place + at, 0.0f);
  }

  // Brings 16 bytes of global memory, at some time before the thread has waited for them.
  __device__ __forceinline__ void bring(int place, const char* from) const {
    __pipeline_memcpy_async(dynamic_shared_memory<char>() + place, from, 16);
  }

#if MAIL_EXISTS
  // One thread calls this before the others of the cluster know the mailbox. Its first use, number 0, expects `bytes`.
  __device__ __forceinline__ void open(int box, unsigned bytes) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(begin_ + box)
                 : "memory");
    expect(box, bytes);
  }
  // One thread calls this before the memory serves something else.
  __device__ __forceinline__ void close(int box) const {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(begin_ + box) : "memory");
  }
  // The next use expects `bytes`: one thread says so once it has waited for the last. What came before counts as well.
  __device__ __forceinline__ void expect(int box, unsigned bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(begin_ + box), "r"(bytes) : "memory");
  }
  // Acquires at the scope of the block: at that of the cluster every wait would empty the first-level cache of global
  // memory as well, from which nothing is read here that others write.
  __device__ __forceinline__ void wait(int box, int use) const {
    asm volatile(
        "{\n\t.reg .pred there;\n"
        "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n\t@there bra over;\n\tbra again;\n"
        "over:\n\t}" ::"r"(begin_ + box),
        "r"(use & 1)
        : "memory");
  }
#endif

  __device__ __forceinline__ unsigned begin() const { return begin_; }

 private:
  __device__ __forceinline__ static void load(unsigned at, float& got) {
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(got) : "r"(at) : "memory");
  }
  __device__ __forceinline__ static void load(unsigned at, double& got) {
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(got) : "r"(at) : "memory");
  }
  // Of Four or Pack.
  template <template <class> class Of>
  __device__ __forceinline__ static void load(unsigned at, Of<float>& got) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(got.v[0]), "=f"(got.v[1]), "=f"(got.v[2]), "=f"(got.v[3])
                 : "r"(at)
                 : "memory");
  }
  __device__ __forceinline__ static void load(unsigned at, Four<double>& got) {
    asm volatile("ld.shared.v2.f64 {%0, %1}, [%2];" : "=d"(got.v[0]), "=d"(got.v[1]) : "r"(at) : "memory");
    asm volatile("ld.shared.v2.f64 {%0, %1}, [%2];" : "=d"(got.v[2]), "=d"(got.v[3]) : "r"(at + 16) : "memory");
  }
  __device__ __forceinline__ static void load(unsigned at, Pack<double>& got) {
    asm volatile("ld.shared.v2.f64 {%0, %1}, [%2];" : "=d"(got.v[0]), "=d"(got.v[1]) : "r"(at) : "memory");
  }
  __device__ __forceinline__ static void load(unsigned at, int& got) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(got) : "r"(at) : "memory");
  }
  __device__ __forceinline__ static void load(unsigned at, Words& got) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(got.v[0]), "=r"(got.v[1]), "=r"(got.v[2]), "=r"(got.v[3])
                 : "r"(at)
                 : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(value) : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, double value) {
    asm volatile("st.shared.f64 [%0], %1;" ::"r"(at), "d"(value) : "memory");
  }
  template <template <class> class Of>
  __device__ __forceinline__ static void store(unsigned at, const Of<float>& value) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(value.v[0]), "f"(value.v[1]),
                 "f"(value.v[2]), "f"(value.v[3])
                 : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, const Four<double>& value) {
    asm volatile("st.shared.v2.f64 [%0], {%1, %2};" ::"r"(at), "d"(value.v[0]), "d"(value.v[1]) : "memory");
    asm volatile("st.shared.v2.f64 [%0], {%1, %2};" ::"r"(at + 16), "d"(value.v[2]), "d"(value.v[3]) : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, const Pack<double>& value) {
    asm volatile("st.shared.v2.f64 [%0], {%1, %2};" ::"r"(at), "d"(value.v[0]), "d"(value.v[1]) : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, int value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
  }
  __device__ __forceinline__ static void store(unsigned at, const Words& value) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(value.v[0]), "r"(value.v[1]),
                 "r"(value.v[2]), "r"(value.v[3])
                 : "memory");
  }

  unsigned begin_;
};

#if MAIL_EXISTS
class Peer {
 public:
  __device__ __forceinline__ Peer(const Memory& memory, unsigned rank) {
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(begin_) : "r"(memory.begin()), "r"(rank));
  }
  // The bytes count in that block's mailbox when they are there. It has no branch, which would take longer.
  __device__ __forceinline__ void push_if(unsigned wanted, int place, int box, const Four<float>& value) const {
    asm volatile(
        "{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, %6, 0;\n\t"
        "@wanted st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];\n\t}" ::"r"(
            begin_ + place),
        "r"(begin_ + box), "f"(value.v[0]), "f"(value.v[1]), "f"(value.v[2]), "f"(value.v[3]), "r"(wanted)
        : "memory");
  }
  __device__ __forceinline__ void push_if(unsigned wanted, int place, int box, const Four<double>& value) const {
    half(wanted, place, box, value.v[0], value.v[1]);
    half(wanted, place + 16, box, value.v[2], value.v[3]);
  }

  // The same of one number or of 16 bytes, always.
  __device__ __forceinline__ void push(int place, int box, float value) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %2, [%1];" ::"r"(begin_ + place),
                 "r"(begin_ + box), "f"(value)
                 : "memory");
  }
  __device__ __forceinline__ void push(int place, int box, double value) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f64 [%0], %2, [%1];" ::"r"(begin_ + place),
                 "r"(begin_ + box), "d"(value)
                 : "memory");
  }
  __device__ __forceinline__ void push(int place, int box, const Pack<float>& value) const {
    push_if(1, place, box, Four<float>{value.v[0], value.v[1], value.v[2], value.v[3]});
  }
  __device__ __forceinline__ void push(int place, int box, const Pack<double>& value) const {
    half(1, place, box, value.v[0], value.v[1]);
  }

 private:
  __device__ __forceinline__ void half(unsigned wanted, int place, int box, double first, double second) const {
    asm volatile(
        "{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, %4, 0;\n\t"
        "@wanted st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f64 [%0], {%2, %3}, [%1];\n\t}" ::"r"(begin_ +
                                                                                                                place),
        "r"(begin_ + box), "d"(first), "d"(second), "r"(wanted)
        : "memory");
  }

 protected:
  unsigned begin_;
};
#endif

#endif

}  // namespace ceprop::cuda
