// The weights into 8 units (an octet), held by one warp in registers, and their product with the states of `Samples`
// samples.
//
//   sources  [octet][Samples | 1 rows of 8 units], in shared memory: an odd number of rows, so that the 8 lanes which
//            are served at once read from different banks
//   lane     has of every chunk of 128 sources the four from 4 * lane on, of a tail of 32 the one number `lane`
//
// Slot j of a lane stands for unit j ^ turn(lane): of two lanes that add up their sums one always keeps the slots that
// the other gives away, so that no selection is needed.
#pragma once

#include "exchange.cuh"
#include "teams/lanes.cuh"

namespace prototype {

using ceprop::cuda::teams::added_up;
using ceprop::cuda::teams::is_first;
using ceprop::cuda::teams::over_samples;
using ceprop::cuda::teams::sample_of;
using ceprop::cuda::teams::turn;
using ceprop::cuda::teams::with_neighbours;
using ceprop::cuda::teams::with_partner;

template <int Samples>
inline constexpr int octet_bytes = ceprop::cuda::teams::octet_bytes(Samples, sizeof(float));  // of 8 units' states

// A lane's part of them. `Rows`: 8, or 9 with one more unit that has the same sources, in the same order in all lanes.
template <int Chunks, int Rows, bool Tail>
struct Weights {
  float weight[Rows][4 * Chunks], tail[8];

  // from(row, source): the weight, 0 where there is none; sources from 128 * Chunks on are the tail's, of 8 rows.
  template <class From>
  __device__ void load(const From& from) {
    const int lane = lane_of_thread();
#pragma unroll
    for (int j = 0; j < Rows; ++j) {
      const int row = j < 8 ? j ^ turn(lane) : j;
#pragma unroll
      for (int k = 0; k < 4 * Chunks; ++k) weight[j][k] = from(row, k / 4 * 128 + 4 * lane + k % 4);
      if (Tail && j < 8) tail[j] = from(row, 128 * Chunks + lane);
    }
  }

  // sources: place of the first chunk, others follow; tail_sources: of 4 octets. Both with own_place() added.
  template <int Samples>
  __device__ __forceinline__ void multiply(const Memory& memory, int sources, int tail_sources,
                                           float (&sum)[Rows][Samples]) const {
    constexpr int stride = octet_bytes<Samples>;
#pragma unroll
    for (int j = 0; j < Rows; ++j)
#pragma unroll
      for (int s = 0; s < Samples; ++s) sum[j][s] = 0;
    if constexpr (Tail) {
#pragma unroll
      for (int s = 0; s < Samples; ++s) {
        const float state = memory.get<float>(tail_sources + 32 * s);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j][s] = tail[j] * state;
      }
    }
#pragma unroll
    for (int c = 0; c < Chunks; ++c)
#pragma unroll
      for (int s = 0; s < Samples; ++s) {
        const Four state = memory.get<Four>(sources + c * 16 * stride + 32 * s);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < Rows; ++j) sum[j][s] += weight[j][4 * c + i] * state.v[i];
      }
  }
  template <int Samples>
  __device__ static int own_place() {
    return lane_of_thread() / 2 * octet_bytes<Samples> + lane_of_thread() % 2 * 16;
  }
  template <int Samples>
  __device__ static int own_tail_place() {
    return lane_of_thread() / 8 * octet_bytes<Samples> + lane_of_thread() % 8 * 4;
  }
};

}  // namespace prototype
