// Small kernels, each with and without a fault, for the tests of the emulation itself.
#pragma once

#include "device.h"

namespace examples {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

__device__ __forceinline__ float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

// Barriers of a kernel's own name: they count as called where the kernel calls these.
__device__ __forceinline__ void wait_for_grid(CUDA_EMULATION_HERE) { cooperative_groups::this_grid().sync(file, line); }

enum class Fault { none, no_block_barrier, no_grid_barrier, block_for_grid_barrier, one_buffer };

// s <- sigmoid(W s + b), `steps` times. Every block keeps its rows of W in shared memory. `states` are two buffers, in
// turn, or with Fault::one_buffer one; the result is in the buffer of the last step.
template <Fault fault>
__global__ void __launch_bounds__(128)
    relax(const float* __restrict__ weights, const float* __restrict__ bias, float* states, int units, int steps) {
  const int rows = units / int(gridDim.x), first = int(blockIdx.x) * rows;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
  float* own_weights = dynamic_shared_memory<float>();  // rows x units
  float* state = own_weights + rows * units;            // units
  for (int i = int(threadIdx.x); i < rows * units; i += int(blockDim.x))
    own_weights[i] = __ldg(weights + first * units + i);
  for (int step = 0; step < steps; ++step) {
    constexpr int buffers = fault == Fault::one_buffer ? 1 : 2;
    const float* from = states + step % buffers * units;
    float* to = states + (step + 1) % buffers * units;
    for (int i = int(threadIdx.x); i < units; i += int(blockDim.x)) state[i] = from[i];
    if (fault != Fault::no_block_barrier) __syncthreads();
    for (int row = warp; row < rows; row += warps) {
      float sum = 0.0f;
      for (int i = lane; i < units; i += 32) sum = fma(own_weights[row * units + i], state[i], sum);
      sum = warp_sum(sum);
      if (lane == 0) to[first + row] = sigmoid(sum + bias[first + row]);
    }
    if (fault == Fault::block_for_grid_barrier)
      __syncthreads();
    else if (fault != Fault::no_grid_barrier)
      wait_for_grid();
  }
}

// Sums over the blocks of a cluster, each of which reads the shared memory of the others.
template <bool waits_at_the_end>
__global__ void __launch_bounds__(64) cluster_sum(const float* in, float* out) {
#if DEVICE_HAS_CLUSTERS
  auto cluster = cooperative_groups::this_cluster();
  float* partial = dynamic_shared_memory<float>();  // 64
  partial[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  cluster.sync();
  float sum = 0.0f;
  for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank)
    sum += cluster.map_shared_rank(partial, rank)[threadIdx.x];
  out[blockIdx.x * 64 + threadIdx.x] = sum;
  if (waits_at_the_end) cluster.sync();
#endif
}

enum class Post { right, no_wait, byte_missing };

struct Letters {
  float got[2][32];
  std::uint64_t boxes[2];
};

// Two blocks hand each other their numbers, `rounds` times, through two buffers with a mailbox each, in turn. Who has
// got all numbers of a round may write to the buffer of the next one: nobody over there reads it any more, as each lane
// that sends has waited for its warp first. Nobody sends to a block that has ended, either.
template <Post post>
__global__ void __launch_bounds__(32) swap_by_mail(const float* in, float* out, int rounds) {
#if DEVICE_HAS_CLUSTERS
  using namespace cuda_emulation;
  auto cluster = cooperative_groups::this_cluster();
  auto& [got, boxes] = *dynamic_shared_memory<Letters>();
  const unsigned other = 1 - cluster.block_rank();
  const int lane = int(threadIdx.x);
  for (int box = 0; box < 2 && lane == 0; ++box) open_mailbox(&boxes[box], sizeof got[0]);
  cluster.sync();
  float value = in[blockIdx.x * 32 + threadIdx.x];
  for (int round = 0; round < rounds; ++round) {
    const int now = round % 2;
    const float beside = __shfl_xor_sync(0xffffffffu, value, 1);
    __syncwarp();
    if (lane % 2 == 0) {
      float* to = cluster.map_shared_rank(&got[now][0], other) + lane;
      to[0] = value;
      to[1] = beside;
      send_to_mailbox(cluster.map_shared_rank(&boxes[now], other), post == Post::byte_missing && lane == 6 ? 7 : 8);
    }
    if (post != Post::no_wait) wait_for_mailbox(&boxes[now], round / 2, __FILE__, __LINE__);
    value = 0.5f * value + got[now][(lane + 1) % 32];
    if (post != Post::no_wait && lane == 0) expect_in_mailbox(&boxes[now], sizeof got[now]);
  }
  out[blockIdx.x * 32 + threadIdx.x] = value;
#endif
}

// One thread is through with two uses of a mailbox before the others wait for the first.
__global__ void __launch_bounds__(32) late_for_mail() {
  using namespace cuda_emulation;
  std::uint64_t* box = dynamic_shared_memory<std::uint64_t>();
  if (threadIdx.x == 0) {
    open_mailbox(box, 4);
    for (int use = 0; use < 2; ++use) {
      send_to_mailbox(box, 4);
      wait_for_mailbox(box, use, __FILE__, __LINE__);
      expect_in_mailbox(box, 4);
    }
  }
  __syncwarp();
  wait_for_mailbox(box, 0, __FILE__, __LINE__);
}

// Sums of the tiles of 128, each of which is fetched while the one before is added. `left`: how many fetches may still
// be under way when a tile is used; 2 is one too many.
template <int left>
__global__ void pipelined_sum(const float* in, float* out, int tiles) {
  auto* buffer = dynamic_shared_memory<float[128]>();  // 2
  const int i = int(threadIdx.x) * 4;
  const auto fetch = [&](int tile) {
    if (tile < tiles) __pipeline_memcpy_async(&buffer[tile % 2][i], in + tile * 128 + i, 16);
    __pipeline_commit();
  };
  float sum[4] = {};
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    __pipeline_wait_prior(left);
    __syncwarp();
    for (int j = 0; j < 4; ++j) sum[j] += buffer[tile % 2][j * 32 + int(threadIdx.x)];
    __syncwarp();
  }
  for (int j = 0; j < 4; ++j) out[j * 32 + int(threadIdx.x)] = sum[j];
}

// The sum of everything, by the block that comes last.
template <bool fences>
__global__ void last_block_sum(const float* in, float* partial, unsigned* counter, float* out) {
  unsigned* is_last = dynamic_shared_memory<unsigned>();
  const float sum = warp_sum(in[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    if (fences) __threadfence();
    *is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*is_last || threadIdx.x > 0) return;
  if (fences) __threadfence();
  float total = 0.0f;
  for (unsigned block = 0; block < gridDim.x; ++block) total += partial[block];
  out[0] = total;
}

template <bool atomic>
__global__ void count(int* counter) {
  if (atomic)
    atomicAdd(counter, 1);
  else
    *counter += 1;
}

// Who comes when.
__global__ void take_tickets(int* next, int* who) {
  who[atomicAdd(next, 1)] = int(blockIdx.x * blockDim.x + threadIdx.x);
}

struct alignas(16) Pair {
  double low, high;
};

// Every thread writes vectors, and reads those of its neighbour. `found`: is no thread number 3, is any, how many find
// what they expect.
__global__ void exchange(float4* fours, Pair* pairs, double2* doubles, int* found) {
  const int i = int(threadIdx.x), next = (i + 1) % int(blockDim.x);
  __stcg(fours + i, make_float4(float(i), 1.0f, 2.0f, 3.0f));
  __stcg(pairs + i, Pair{fma(double(i), 2.0, 1.0), ldexp(1.0, i % 64)});
  __stcg(doubles + i, make_double2(i, -i));
  __syncthreads();
  const float4 four = __ldcg(fours + next);
  const Pair pair = __ldcg(pairs + next);
  const double2 two = __ldcg(doubles + next);
  const bool right = four.x == float(next) && four.w == 3.0f && pair.low == 2.0 * next + 1.0 &&
                     pair.high == ldexp(1.0, next % 64) && two.y == -double(next);
  const int all = __syncthreads_and(i != 3);
  const int any = __syncthreads_or(i == 3);
  const int number = __syncthreads_count(right);
  if (i == 0) {
    found[0] = all;
    found[1] = any;
    found[2] = number;
  }
}

enum class Where { shared, global, misaligned };

// Shifted by 1, one thread writes behind the end, or a vector to where none may be.
__global__ void shift(float* out, Where where, int by) {
  float* to = where == Where::global ? out : dynamic_shared_memory<float>();
  if (where == Where::misaligned)
    *reinterpret_cast<float4*>(out + by) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  else
    to[int(threadIdx.x) + by] = float(threadIdx.x);
}

enum class Divergence { none, some_exit, two_barriers, block_and_grid, missing_lane, polling };

__global__ void diverge(float* out, unsigned* flag, Divergence how) {
  const int i = int(threadIdx.x);
  if (how == Divergence::none) __syncthreads();
  if (how == Divergence::some_exit && i < 40) __syncthreads();
  if (how == Divergence::two_barriers) {
    if (i < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  if (how == Divergence::block_and_grid) {
    if (i < 32)
      __syncthreads();
    else
      cooperative_groups::this_grid().sync();
  }
  if (how == Divergence::missing_lane && i < 32) {
    if (i != 7) out[i] = __shfl_xor_sync(0xffffffffu, float(i), 1);
    __syncwarp();
  }
  while (how == Divergence::polling && atomicAdd(flag, 0u) == 0u) {
  }
}

}  // namespace examples
