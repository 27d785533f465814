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

namespace prototype {

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) & 31; }
// The unit of an octet, and the sample, that a lane has when all sums are added up.
__device__ __forceinline__ int turn(int lane) { return (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane & 1); }
template <int Samples>
__device__ __forceinline__ int sample_of(int lane) {
  const int low = lane >> 1 & 1, high = lane >> 2 & 1;
  return Samples == 4 ? 2 * low + high : Samples == 3 ? (high ? 2 : low) : Samples == 2 ? low : 0;
}
// Whether a lane is the first of those that end with the same sum: with less than 4 samples two or four of them do.
template <int Samples>
__device__ __forceinline__ bool is_first(int lane) {
  const int low = lane >> 1 & 1, high = lane >> 2 & 1;
  return Samples == 4 || (Samples == 3 ? !(high && low) : Samples == 2 ? !high : !high && !low);
}

template <int Samples>
inline constexpr int octet_bytes = 32 * (Samples | 1);  // of the states of 8 units

__device__ __forceinline__ float with_partner(float x, int bits) { return __shfl_xor_sync(0xffffffffu, x, bits); }

// Of one unit's sums: each added up over the lanes whose numbers differ in bits 1 and 2 only; a lane gets that of
// sample_of(lane).
template <int Samples>
__device__ __forceinline__ float over_samples(const float (&sum)[Samples]) {
  const bool low = lane_of_thread() & 2, high = lane_of_thread() & 4;
  if constexpr (Samples == 4) {
    float kept[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) kept[s] = (low ? sum[2 + s] : sum[s]) + with_partner(low ? sum[s] : sum[2 + s], 2);
    return (high ? kept[1] : kept[0]) + with_partner(high ? kept[0] : kept[1], 4);
  } else if constexpr (Samples == 3) {
    const float first = (low ? sum[1] : sum[0]) + with_partner(low ? sum[0] : sum[1], 2);
    const float last = sum[2] + with_partner(sum[2], 2);
    return (high ? last : first) + with_partner(high ? first : last, 4);
  } else if constexpr (Samples == 2) {
    const float one = (low ? sum[1] : sum[0]) + with_partner(low ? sum[0] : sum[1], 2);
    return one + with_partner(one, 4);
  } else {
    const float one = sum[0] + with_partner(sum[0], 2);
    return one + with_partner(one, 4);
  }
}

// Adds up each slot's sums over the lanes: afterwards a lane has that of unit turn(lane) and sample_of(lane).
template <int Samples>
__device__ __forceinline__ float added_up(float (&sum)[8][Samples]) {
#pragma unroll
  for (int half = 4; half > 0; half /= 2)
#pragma unroll
    for (int j = 0; j < half; ++j)
#pragma unroll
      for (int s = 0; s < Samples; ++s) sum[j][s] += with_partner(sum[j + half][s], half == 4 ? 16 : half == 2 ? 8 : 1);
  return over_samples<Samples>(sum[0]);
}

// Four neighbouring units of the lane's sample, of that half of the octet to which its own unit belongs.
__device__ __forceinline__ Four with_neighbours(float mine) {
  const int lane = lane_of_thread();
  const float beside = with_partner(mine, 1);
  const float even = lane & 1 ? beside : mine, odd = lane & 1 ? mine : beside;
  const float other_even = with_partner(even, 8), other_odd = with_partner(odd, 8);
  return lane & 8 ? Four{other_even, other_odd, even, odd} : Four{even, odd, other_even, other_odd};
}

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
        const float state = memory.one(tail_sources + 32 * s);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j][s] = tail[j] * state;
      }
    }
#pragma unroll
    for (int c = 0; c < Chunks; ++c)
#pragma unroll
      for (int s = 0; s < Samples; ++s) {
        const Four state = memory.four(sources + c * 16 * stride + 32 * s);
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
