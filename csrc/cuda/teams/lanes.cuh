// One warp multiplies the weights of 8 units (an octet) by the states of `Samples` samples. Sources lie across its
// lanes, and every sum ends in a lane of its own.
//
//   states   [octet][Samples | 1 rows of 8 units], an odd number of rows, so that in shared memory the 8 lanes which
//            are served at once read from different banks
//   weights  [chunk of 128 sources][slot][lane][4], then [octet of sources][half of it][unit][4]
//   lane     has of every chunk the four sources from 4 * lane on; of the octets behind them, which are few, it has
//   all,
//            for the one unit and sample whose sum ends in it
//
// Slot j of a lane stands for unit j ^ turn(lane): of two lanes that add up their sums one always keeps the slots that
// the other gives away, so that no selection is needed.
#pragma once

#include "../../model/activations.h"
#include "../block/mail.cuh"
#include "layout.h"

namespace ceprop::cuda::teams {

// These return the unit of an octet, and the sample, that a lane has when all sums are added up.
__device__ __forceinline__ int turn(int lane) { return (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane & 1); }
template <int Samples>
__device__ __forceinline__ int sample_of(int lane) {
  const int low = lane >> 1 & 1, high = lane >> 2 & 1;
  return Samples == 4 ? 2 * low + high : Samples == 3 ? (high ? 2 : low) : Samples == 2 ? low : 0;
}
// Returns whether a lane is the first of those that end with the same sum. With less than 4 samples two or four do.
template <int Samples>
__device__ __forceinline__ bool is_first(int lane) {
  const int low = lane >> 1 & 1, high = lane >> 2 & 1;
  return Samples == 4 || (Samples == 3 ? !(high && low) : Samples == 2 ? !high : !high && !low);
}

// Returns what neighbours see of a state.
template <class T>
__device__ __forceinline__ T shown_by(Activation activation, Dynamics dynamics, T state) {
  if (dynamics == Dynamics::prototypical) return state;
  T shown = 0;
  with_activation(activation, [&]<Activation A>() { shown = rho<A>(state); });
  return shown;
}

template <class T>
__device__ __forceinline__ T with_partner(T x, int bits) {
  return __shfl_xor_sync(0xffffffffu, x, bits);
}

// Adds up each of one unit's sums over the lanes whose numbers differ in bits 1 and 2 only. A lane gets that of
// sample_of(lane).
template <int Samples, class T>
__device__ __forceinline__ T over_samples(int lane, const T (&sum)[Samples]) {
  const bool low = lane & 2, high = lane & 4;
  if constexpr (Samples == 4) {
    T kept[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) kept[s] = (low ? sum[2 + s] : sum[s]) + with_partner(low ? sum[s] : sum[2 + s], 2);
    return (high ? kept[1] : kept[0]) + with_partner(high ? kept[0] : kept[1], 4);
  } else if constexpr (Samples == 3) {
    const T first = (low ? sum[1] : sum[0]) + with_partner(low ? sum[0] : sum[1], 2);
    const T last = sum[2] + with_partner(sum[2], 2);
    return (high ? last : first) + with_partner(high ? first : last, 4);
  } else if constexpr (Samples == 2) {
    const T one = (low ? sum[1] : sum[0]) + with_partner(low ? sum[0] : sum[1], 2);
    return one + with_partner(one, 4);
  } else {
    const T one = sum[0] + with_partner(sum[0], 2);
    return one + with_partner(one, 4);
  }
}

#ifdef CUDA_EMULATION
// What a lane gives away of the sums of 2 * half slots: the second half.
template <int Samples, class T>
struct Slots {
  Slots(const T (&sum)[octet][Samples], int half) {
    for (int j = 0; j < half; ++j)
      for (int s = 0; s < Samples; ++s) v[j][s] = sum[half + j][s];
  }
  T v[octet / 2][Samples] = {};
};
#endif

// Adds up each slot's sums over the lanes: afterwards a lane has that of unit turn(lane) and sample_of(lane).
template <int Samples, class T>
__device__ __forceinline__ T added_up(int lane, T (&sum)[octet][Samples]) {
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const int bits = half == 4 ? 16 : half == 2 ? 8 : 1;
#ifdef CUDA_EMULATION  // lanes meet once for all slots: meeting takes most of its time
    const auto got = with_partner(Slots<Samples, T>(sum, half), bits);
    for (int j = 0; j < half; ++j)
      for (int s = 0; s < Samples; ++s) sum[j][s] += got.v[j][s];
#else
#pragma unroll
    for (int j = 0; j < half; ++j)
#pragma unroll
      for (int s = 0; s < Samples; ++s) sum[j][s] += with_partner(sum[j + half][s], bits);
#endif
  }
  return over_samples<Samples>(lane, sum[0]);
}

// Returns four neighbouring units of the lane's sample, of that half of the octet to which its own unit belongs.
template <class T>
__device__ __forceinline__ Four<T> with_neighbours(int lane, T mine) {
  const T beside = with_partner(mine, 1);
  const T even = lane & 1 ? beside : mine, odd = lane & 1 ? mine : beside;
  const T other_even = with_partner(even, 8), other_odd = with_partner(odd, 8);
  return lane & 8 ? Four<T>{other_even, other_odd, even, odd} : Four<T>{even, odd, other_even, other_odd};
}
// Returns which of the four lanes with the same four numbers this one is.
__device__ __forceinline__ int quarter_of(int lane) { return (lane & 1) + (lane >> 3 & 1) * 2; }

// Adds weights times the states of a layer's chunks to sum[slot][sample]. Both places are of the first chunk.
template <int Samples, class T>
__device__ __forceinline__ void multiply(const Memory& memory, int lane, int states, int weights, int chunks,
                                         T (&sum)[octet][Samples]) {
  constexpr int stride = octet_bytes(Samples, sizeof(T)), row = octet * sizeof(T), four = 4 * sizeof(T);
  int at = states + lane / 2 * stride + lane % 2 * four;
#pragma unroll 1
  for (int c = 0; c < chunks; ++c, at += chunk_octets * stride, weights += chunk_bytes(sizeof(T))) {
    Four<T> state[Samples];
#pragma unroll
    for (int s = 0; s < Samples; ++s) state[s] = memory.get<Four<T>>(at + row * s);
#pragma unroll
    for (int j = 0; j < octet; ++j) {
      const auto weight = memory.get<Four<T>>(weights + (j * 32 + lane) * four);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int s = 0; s < Samples; ++s) sum[j][s] += weight.v[i] * state[s].v[i];
    }
  }
}

// Returns weights times the states of a layer's pairs of octets behind its chunks, of the lane's own unit and sample.
// Both places are of the first pair.
template <int Samples, class T>
__device__ __forceinline__ T multiply_own(const Memory& memory, int lane, int states, int weights, int pairs) {
  constexpr int stride = octet_bytes(Samples, sizeof(T)), row = octet * sizeof(T), four = 4 * sizeof(T);
  int at = states + sample_of<Samples>(lane) * row, from = weights + turn(lane) * four;
  T sum[4] = {};
#pragma unroll 1
  for (int c = 0; c < pairs; ++c, at += 2 * stride, from += pair_bytes(sizeof(T))) {
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const auto state = memory.get<Four<T>>(at + quarter / 2 * stride + quarter % 2 * four);
      const auto weight = memory.get<Four<T>>(from + quarter * octet * four);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[quarter] += weight.v[i] * state.v[i];
    }
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace ceprop::cuda::teams
