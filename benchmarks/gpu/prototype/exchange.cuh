// How the blocks of a cluster hand each other states: every store carries its own arrival, so that nobody needs a
// barrier of all threads or a fence. A mailbox counts the bytes that have come into a buffer of its block's shared
// memory.
//
// Places in shared memory are numbers of bytes from its begin; `Memory` reads there, `Peer` writes to another block's.
// All inline PTX is here, each piece beside what stands for it under the emulation.
#pragma once

#include "device.h"

namespace prototype {

struct alignas(16) Four {
  float v[4];
};
inline constexpr int mailbox_bytes = 16;

#ifdef CUDA_EMULATION

class Memory {
 public:
  __device__ Memory() : begin_(dynamic_shared_memory<char>()) {}
  __device__ float one(int place) const { return *at<float>(place); }
  __device__ Four four(int place) const { return *at<Four>(place); }
  __device__ void put(int place, float value) const { *at<float>(place) = value; }

  __device__ void open(int box, unsigned bytes) const { cuda_emulation::open_mailbox(begin_ + box, bytes); }
  __device__ void expect(int box, unsigned bytes) const { cuda_emulation::expect_in_mailbox(begin_ + box, bytes); }
  __device__ void wait(int box, int use, CUDA_EMULATION_HERE) const {
    cuda_emulation::wait_for_mailbox(begin_ + box, use, file, line);
  }

  template <class T>
  __device__ T* at(int place) const {
    return reinterpret_cast<T*>(begin_ + place);
  }

 private:
  char* begin_;
};

class Peer {
 public:
  __device__ Peer(const Memory& memory, unsigned rank)
      : begin_(cooperative_groups::this_cluster().map_shared_rank(memory.at<char>(0), rank)) {}
  template <class Number>
  __device__ void push(int place, int box, const Number& value) const {
    *reinterpret_cast<Number*>(begin_ + place) = value;
    cuda_emulation::send_to_mailbox(begin_ + box, sizeof(Number));
  }

 private:
  char* begin_;
};

#else

class Memory {
 public:
  // Opaque to the compiler, which would else work the address out again at every use.
  __device__ __forceinline__ Memory() {
    begin_ = static_cast<unsigned>(__cvta_generic_to_shared(dynamic_shared_memory<char>()));
    asm volatile("" : "+r"(begin_));
  }
  __device__ __forceinline__ float one(int place) const {
    float got;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(got) : "r"(begin_ + place) : "memory");
    return got;
  }
  __device__ __forceinline__ Four four(int place) const {
    Four got;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(got.v[0]), "=f"(got.v[1]), "=f"(got.v[2]), "=f"(got.v[3])
                 : "r"(begin_ + place)
                 : "memory");
    return got;
  }
  __device__ __forceinline__ void put(int place, float value) const {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(begin_ + place), "f"(value) : "memory");
  }

  // By one thread, before the others of the cluster know the mailbox. `bytes`: expected in its first use, number 0.
  __device__ __forceinline__ void open(int box, unsigned bytes) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(begin_ + box)
                 : "memory");
    expect(box, bytes);
  }
  // In the next use, by one thread, once it has waited for the last. What comes before counts as well.
  __device__ __forceinline__ void expect(int box, unsigned bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(begin_ + box), "r"(bytes) : "memory");
  }
  // Acquires at the scope of the block: at that of the cluster every wait would empty the first-level cache of global
  // memory as well (CCTL.IVALL), from which nothing is read here that others write.
  __device__ __forceinline__ void wait(int box, int use) const {
    asm volatile(
        "{\n\t.reg .pred there;\n"
        "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n\t@there bra over;\n\tbra again;\n"
        "over:\n\t}" ::"r"(begin_ + box),
        "r"(use & 1)
        : "memory");
  }

  __device__ __forceinline__ unsigned begin() const { return begin_; }

 private:
  unsigned begin_;
};

class Peer {
 public:
  __device__ __forceinline__ Peer(const Memory& memory, unsigned rank) {
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(begin_) : "r"(memory.begin()), "r"(rank));
  }
  // The bytes count in that block's mailbox, when they are there.
  __device__ __forceinline__ void push(int place, int box, const Four& value) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(
                     begin_ + place),
                 "r"(begin_ + box), "f"(value.v[0]), "f"(value.v[1]), "f"(value.v[2]), "f"(value.v[3])
                 : "memory");
  }
  __device__ __forceinline__ void push(int place, int box, const float& value) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %2, [%1];" ::"r"(begin_ + place),
                 "r"(begin_ + box), "f"(value)
                 : "memory");
  }

 private:
  unsigned begin_;
};

#endif

}  // namespace prototype
