// The mail of the kernels' teams, to which the prototype adds one number at a time: each of its outputs is sent alone.
#pragma once

#include "block/mail.cuh"

namespace prototype {

using ceprop::cuda::mailbox_bytes;
using ceprop::cuda::Memory;
using Four = ceprop::cuda::Four<float>;

class Peer : public ceprop::cuda::Peer {
 public:
  using ceprop::cuda::Peer::Peer;

  __device__ __forceinline__ void push(int place, int box, const Four& value) const { push_if(1, place, box, value); }
  __device__ __forceinline__ void push(int place, int box, const float& value) const {
#ifdef CUDA_EMULATION
    *reinterpret_cast<float*>(begin_ + place) = value;
    cuda_emulation::send_to_mailbox(begin_ + box, sizeof value);
#else
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %2, [%1];" ::"r"(begin_ + place),
                 "r"(begin_ + box), "f"(value)
                 : "memory");
#endif
  }
};

}  // namespace prototype
