// All relaxation steps of a chain with two hidden layers, of the same width, and a few outputs, by prototypical
// dynamics:
//   free phase    s' = rho(drive of the layers below and above)
//   nudged phase  the same, and the outputs + beta (target - s)
// A cluster has all weights between these layers in its registers, and takes `Samples` samples in each of `groups`
// groups at a time. Clusters know nothing of each other: while the weights rest, samples do not meet.
//
// Of a cluster's blocks the first half has layer 0, the second half layer 1, an octet of units a warp: so a block needs
// the states of one layer only, and only that half sends to it. The blocks of layer 0 read the same states as the
// outputs do, of which their warps have one each, the first warps of all blocks first.
//
// Two buffers a group are enough without any word from the receivers: who has all states of a step knows that all who
// sent them are past the step before, and those are all who still could read the buffer that it writes next.
#pragma once

#include "rows.cuh"
#include "sigmoid.cuh"

namespace prototype {

inline constexpr int warps = 8, threads = 32 * warps, most_groups = 8, tail_units = 32;

struct Problem {
  int batch, width, outputs, groups, free_steps, nudged_steps;
  float beta;
  const float *between, *above;        // W[1] [width][width], W[2] [outputs][width]
  const float *drive, *bias1, *bias2;  // [batch][width]: of layer 0 by the input, bias included; [width]; [outputs]
  const float* target;                 // [batch][outputs]
  float* states[2][3];  // [batch][units], at the ends of the free and the nudged phase; of 1 step or more
};

// Where things lie in shared memory: mailboxes [group][2], buffers [group][2] of the neighbours' states,
// [octet of the other layer, then of the outputs][Samples | 1][8], constants [warp][group][3][32].
template <int Samples>
struct Places {
  int row, of_layer, buffers, constants;
  __device__ explicit Places(const Problem& p)
      : row((p.width + tail_units) / 8 * octet_bytes<Samples>),
        of_layer(p.width / 8 * octet_bytes<Samples>),
        buffers(2 * most_groups * mailbox_bytes),
        constants(buffers + 2 * p.groups * row) {}
};
// That come to a block of a layer at every step and for every group.
__device__ __forceinline__ unsigned bytes_of_step(const Problem& p, int layer, int samples) {
  return static_cast<unsigned>((p.width + (layer == 1 ? p.outputs : 0)) * samples * 4);
}

template <int Chunks, int Samples, int Blocks, int Layer, bool HasOutput>
__device__ __forceinline__ void run_warp(const Problem& p, const Memory& memory) {
  constexpr int rows = HasOutput ? 9 : 8, stride = octet_bytes<Samples>;
  using Own = Weights<Chunks, rows, Layer == 1>;
  const Places<Samples> places(p);
  constexpr int half = Blocks / 2;
  const int lane = lane_of_thread(), warp = static_cast<int>(threadIdx.x) / 32;
  const int block = static_cast<int>(blockIdx.x) % Blocks % half;  // among those of its layer
  const int first_sample = static_cast<int>(blockIdx.x) / Blocks * p.groups * Samples;
  const int first = (block * warps + warp) * 8, unit = first + turn(lane);
  const int in_group = sample_of<Samples>(lane), output = warp * half + block;
  const bool has_unit = is_first<Samples>(lane) && unit < p.width;
  const unsigned bytes = bytes_of_step(p, Layer, Samples);

  Own own;
  own.load([&](int row, int k) {
    const int own_unit = first + row;
    if (row == 8) return k < p.width ? p.above[int64_t(output) * p.width + k] : 0.0f;
    if (own_unit >= p.width) return 0.0f;
    if (k < 128 * Chunks)
      return k >= p.width ? 0.0f
             : Layer == 0 ? p.between[int64_t(k) * p.width + own_unit]
                          : p.between[int64_t(own_unit) * p.width + k];
    k -= 128 * Chunks;
    return k < p.outputs ? p.above[int64_t(k) * p.width + own_unit] : 0.0f;
  });

  // Of every group: what drives the lane's unit without its neighbours, what pulls its output, and the output's state.
  const int own_constants = places.constants + (warp * most_groups * 3 * 32 + lane) * 4;
  for (int g = 0; g < p.groups; ++g) {
    const int sample = first_sample + g * Samples + in_group;
    const bool there = sample < p.batch && unit < p.width;
    memory.put(own_constants + 384 * g, !there       ? 0.0f
                                        : Layer == 0 ? p.drive[int64_t(sample) * p.width + unit]
                                                     : p.bias1[unit]);
    memory.put(own_constants + 384 * g + 128,
               HasOutput && sample < p.batch ? p.target[int64_t(sample) * p.outputs + output] : 0.0f);
    memory.put(own_constants + 384 * g + 256, 0.0f);
  }
  const float output_bias = HasOutput ? p.bias2[output] : 0;

  const int from = places.buffers + Own::template own_place<Samples>();
  const int tail = places.buffers + places.of_layer + Own::template own_tail_place<Samples>();
  const int to = places.buffers + first / 8 * stride + 32 * in_group + (lane & 16 ? 16 : 0);
  const int to_output = places.buffers + places.of_layer + output / 8 * stride + 32 * in_group + output % 8 * 4;
  // Of four lanes with the same four numbers each sends them to a quarter of the other layer's blocks.
  constexpr int ranks = (half + 3) / 4;
  const int quarter = (lane & 1) + (lane >> 3 & 1) * 2;
  const bool sends = quarter < half;
  const auto rank = [&](int i) { return static_cast<unsigned>((1 - Layer) * half + (quarter + 4 * i) % half); };
  const Peer peers[2] = {Peer(memory, rank(0)), Peer(memory, rank(ranks - 1))};

  int step = 0;
#pragma unroll 1
  for (int phase = 0; phase < 2; ++phase) {
    const int steps = phase ? p.nudged_steps : p.free_steps;
    const float beta = phase ? p.beta : 0;
    float state = 0, of_output = 0;
#pragma unroll 1
    for (int count = 0; count < steps; ++count, ++step)
#pragma unroll 1
      for (int g = 0; g < p.groups; ++g) {
        const int now = step & 1, box = (2 * g + now) * mailbox_bytes, next_box = (2 * g + 1 - now) * mailbox_bytes;
        const int at = (2 * g + now) * places.row, next = (2 * g + 1 - now) * places.row;
        if (step > 0) {
          memory.wait(box, (step - 1) >> 1);
          __syncwarp();  // lanes that found the states there at different times go on together
          if (threadIdx.x == 0) memory.expect(box, bytes);  // of the step after the next
        }
        const float constant = memory.get<float>(own_constants + 384 * g);
        float sum[rows][Samples];
        own.multiply(memory, at + from, at + tail, sum);
        float (&octet)[8][Samples] = reinterpret_cast<float (&)[8][Samples]>(sum);
        if constexpr (HasOutput) {
          const float pulls = memory.get<float>(own_constants + 384 * g + 128),
                      before = memory.get<float>(own_constants + 384 * g + 256);
#pragma unroll
          for (int bit = 0; bit < 3; ++bit)
#pragma unroll
            for (int s = 0; s < Samples; ++s) sum[8][s] += with_partner(sum[8][s], bit == 0 ? 16 : bit == 1 ? 8 : 1);
          const float all = over_samples<Samples>(lane_of_thread(), sum[8]);
          of_output = steep_sigmoid(all + output_bias) + beta * (pulls - before);
          memory.put(own_constants + 384 * g + 256, of_output);
        }
        state = steep_sigmoid(added_up<Samples>(lane_of_thread(), octet) + constant);
        const Four four = with_neighbours(lane_of_thread(), state);
        __syncwarp();  // what is sent says that no lane reads the step's states any more
        if (has_unit && sends) {
#pragma unroll
          for (int i = 0; i < ranks; ++i) peers[i].push(next + to, next_box, four);
        }
        if constexpr (HasOutput) {  // every lane has one of its sample
          if (is_first<Samples>(lane) && !(lane & 16) && sends) {
#pragma unroll
            for (int i = 0; i < ranks; ++i) peers[i].push(next + to_output, next_box, of_output);
          }
        }
        if (count + 1 == steps) {
          const int sample = first_sample + g * Samples + in_group;
          if (has_unit && sample < p.batch) p.states[phase][Layer][int64_t(sample) * p.width + unit] = state;
          if (HasOutput && is_first<Samples>(lane) && turn(lane) == 0 && sample < p.batch)
            p.states[phase][2][int64_t(sample) * p.outputs + output] = of_output;
        }
      }
  }
  // Nobody ends while others still send to it.
  for (int g = 0; g < p.groups; ++g)
    if (step > 0) memory.wait((2 * g + (step & 1)) * mailbox_bytes, (step - 1) >> 1);
}

// One cluster for `groups` * Samples samples. Dynamic shared memory: see shared_bytes().
template <int Chunks, int Samples, int Blocks>
__global__ void __launch_bounds__(threads, 1) relax(const __grid_constant__ Problem p) {
  const Places<Samples> places(p);
  const Memory memory;
  const int warp = static_cast<int>(threadIdx.x) / 32, block = static_cast<int>(blockIdx.x) % Blocks;
  const int layer = block >= Blocks / 2;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * p.groups * places.row / 4; i += threads)
    memory.put(places.buffers + 4 * i, 0.0f);
  if (threadIdx.x == 0)
    for (int box = 0; box < 2 * p.groups; ++box) memory.open(box * mailbox_bytes, bytes_of_step(p, layer, Samples));
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  if (layer == 1)
    run_warp<Chunks, Samples, Blocks, 1, false>(p, memory);
  else if (warp * (Blocks / 2) + block < p.outputs)
    run_warp<Chunks, Samples, Blocks, 0, true>(p, memory);
  else
    run_warp<Chunks, Samples, Blocks, 0, false>(p, memory);
}

inline int64_t shared_bytes(int width, int samples, int groups) {
  const int64_t row = (width + tail_units) / 8 * 32 * (samples | 1);
  return 2 * most_groups * mailbox_bytes + 2 * groups * row + warps * most_groups * 3 * 32 * 4;
}

}  // namespace prototype
