// A kind of team says who is in it, how a block hands its new states to those that read them, and how it waits for what
// it reads.
//
// What is handed on goes through a channel, and is counted there. `states` counts half-steps from the launch on: every
// turn of a step is one. `outputs` counts steps: it brings output units each other's states, for a loss that takes them
// together.
//
// A team meets, at every half-step, by a barrier of all its threads, or has mail: then a warp waits for what it reads.
// States that are far, in global memory, are copied to the block's memory before they are read.
#pragma once

#include "lanes.cuh"

namespace ceprop::cuda::teams {

enum class Channel { states, outputs };

// One block has all units.
struct OneBlock {
  static constexpr bool has_mail = false, is_far = false;

  __device__ __forceinline__ OneBlock(const Memory& memory, int, char*) : memory_(memory) {}

  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ int index() const { return static_cast<int>(blockIdx.x); }

  __device__ __forceinline__ void meet(CALLED_FROM) const { cooperative_groups::this_thread_block().sync(CALLER); }
  template <class Number>
  __device__ __forceinline__ Number shown(int place) const {
    return memory_.get<Number>(place);
  }
  __device__ __forceinline__ void clear(int place, int bytes) const { memory_.clear(place, bytes); }
  template <class T>
  __device__ __forceinline__ void push(Channel, int, int, int lane, bool sends, int readers, const unsigned*, int place,
                                       const Four<T>& four) const {
    if (sends && readers > 0 && quarter_of(lane) == 0) memory_.put(place, four);
  }

 private:
  const Memory memory_;
};

// All blocks of the grid have a share of the units each. Their states are in global memory.
struct Grid {
  static constexpr bool has_mail = false, is_far = true;

  __device__ __forceinline__ Grid(const Memory& memory, int, char* exchange) : memory_(memory), exchange_(exchange) {}

  __device__ __forceinline__ int rank() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ int index() const { return 0; }

  __device__ __forceinline__ void meet(CALLED_FROM) const { cooperative_groups::this_grid().sync(CALLER); }
  template <class Number>
  __device__ __forceinline__ Number shown(int place) const {
    return get_from_all<Number>(exchange_ + place);
  }
  // Brings 16 bytes from there to the block's memory. All threads of the block have them after wait_for_brought().
  __device__ __forceinline__ void bring(int to, int place) const { memory_.bring(to, exchange_ + place); }
  __device__ __forceinline__ void wait_for_brought(CALLED_FROM) const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    cooperative_groups::this_thread_block().sync(CALLER);
  }
  // The same of what this warp has brought, for its own threads.
  __device__ __forceinline__ void wait_for_own(CALLED_FROM) const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncwarp(0xffffffffu AND_CALLER);
  }
  // The next meeting ends it.
  __device__ __forceinline__ void clear(int place, int bytes) const {
    const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int threads = static_cast<int>(gridDim.x * blockDim.x);
    for (int at = 4 * first; at < bytes; at += 4 * threads) put_for_all(exchange_ + place + at, 0.0f);
  }
  template <class T>
  __device__ __forceinline__ void push(Channel, int, int, int lane, bool sends, int readers, const unsigned*, int place,
                                       const Four<T>& four) const {
    if (sends && readers > 0 && quarter_of(lane) == 0) put_for_all(exchange_ + place, four);
  }

 private:
  const Memory memory_;
  char* const exchange_;
};

#if DEVICE_HAS_CLUSTERS
// The blocks of a cluster push states into each other's memory. Each group has two mailboxes in each channel, for even
// and for odd counts.
//
// Two buffers do, without a word from who reads: a block that has all of count t knows that all its senders have read
// t - 1, as what they sent came from it; and who reads a layer's states sends to all who have its units.
struct Cluster {
  static constexpr bool has_mail = true, is_far = false;

  __device__ __forceinline__ Cluster(const Memory& memory, int groups, char*) : memory_(memory), groups_(groups) {}

  __device__ __forceinline__ int rank() const {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  __device__ __forceinline__ int index() const {
    return static_cast<int>(blockIdx.x / cooperative_groups::this_cluster().num_blocks());
  }

  // So many bytes come to this block in even and in odd counts. Of outputs they are the same.
  __device__ __forceinline__ void open(Channel channel, unsigned even, unsigned odd) {
    if (channel == Channel::states) {
      even_ = even;
      odd_ = odd;
    } else {
      of_outputs_ = even;
    }
    if (threadIdx.x != 0) return;
    for (int g = 0; g < groups_; ++g) {
      if (even > 0) memory_.open(box_of(channel, g, 0), even);
      if (odd > 0) memory_.open(box_of(channel, g, 1), odd);
    }
  }
  // Nobody writes to a block that has not begun.
  __device__ __forceinline__ void begin(CALLED_FROM) const { cooperative_groups::this_cluster().sync(CALLER); }

  template <class Number>
  __device__ __forceinline__ Number shown(int place) const {
    return memory_.get<Number>(place);
  }
  __device__ __forceinline__ void clear(int place, int bytes) const { memory_.clear(place, bytes); }

  // Afterwards all of count `count` - 1 is there. `works`: this warp has units that move by what it waits for; nobody
  // else may wait, who could be two uses of the mailbox behind. `first`: it is the first of them, and says what the
  // next use expects.
  __device__ __forceinline__ void wait(Channel channel, int g, int count, bool works,
                                       bool first AND_CALLED_FROM) const {
    if (count == 0 || !works) return;
    const int parity = (count - 1) & 1;
    const unsigned bytes = bytes_of(channel, parity);
    if (bytes == 0) return;
    memory_.wait(box_of(channel, g, parity), (count - 1) >> 1 AND_CALLER);
    if (first && lane_of_thread() == 0) memory_.expect(box_of(channel, g, parity), bytes);
  }

  // Sends to so many readers, whose numbers are listed, if the lane `sends`. Four lanes have the same numbers, and each
  // sends them to a quarter of the readers.
  template <class T>
  __device__ __forceinline__ void push(Channel channel, int g, int count, int lane, bool sends, int readers,
                                       const unsigned* list, int place, const Four<T>& four) const {
    const int box = box_of(channel, g, count & 1), quarter = quarter_of(lane);
#pragma unroll
    for (int k = 0; k < most_cluster_blocks / 4; ++k) {
      if (4 * k >= readers) break;
      const unsigned rank = list[k / 2] >> (4 * quarter + 16 * (k % 2)) & 15;
      Peer(memory_, rank).push_if(sends && 4 * k + quarter < readers, place, box, four);
    }
  }

  // Nobody ends while others still send to it.
  __device__ __forceinline__ void end(CALLED_FROM) const {
    cooperative_groups::this_cluster().sync(CALLER);
    if (threadIdx.x != 0) return;
    for (const Channel channel : {Channel::states, Channel::outputs})
      for (int g = 0; g < groups_; ++g)
        for (int parity = 0; parity < 2; ++parity)
          if (bytes_of(channel, parity) > 0) memory_.close(box_of(channel, g, parity));
  }

 private:
  __device__ __forceinline__ unsigned bytes_of(Channel channel, int parity) const {
    return channel == Channel::outputs ? of_outputs_ : parity ? odd_ : even_;
  }
  __device__ __forceinline__ int box_of(Channel channel, int g, int parity) const {
    return ((static_cast<int>(channel) * groups_ + g) * 2 + parity) * mailbox_bytes;
  }

  const Memory memory_;
  const int groups_;
  unsigned even_ = 0, odd_ = 0, of_outputs_ = 0;
};
#endif

}  // namespace ceprop::cuda::teams
