// What it costs that blocks wait for each other or hand each other numbers, and where they run.
#pragma once

#include <numeric>
#include <random>

#include "exchange.cuh"
#include "timing.cuh"

namespace micro {

// Cycles and nanoseconds of a long chain of multiply-adds, on every multiprocessor.
__global__ void __launch_bounds__(256) spin(long long* cycles, long long* nanoseconds, float* out) {
  const auto timer = [] {
    long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
  };
  float x = float(threadIdx.x);
  const long long from = timer(), begin = clock64();
  for (int i = 0; i < 1 << 22; ++i) x = fmaf(x, 0.999f, 1.0f);
  const long long end = clock64(), to = timer();
  if (threadIdx.x == 0) {
    cycles[blockIdx.x] = end - begin;
    nanoseconds[blockIdx.x] = to - from;
  }
  if (x == 0.5f) *out = x;
}

__global__ void grid_barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) cooperative_groups::this_grid().sync();
}
__global__ void cluster_barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) cooperative_groups::this_cluster().sync();
}
// An atomic and a poll by one thread a block: what a barrier of all blocks costs at least. `count` starts at 0.
__global__ void counted_barriers(int rounds, unsigned* count) {
  for (int i = 1; i <= rounds; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned seen;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
      while (seen < unsigned(i) * gridDim.x);
    }
    __syncthreads();
  }
}

constexpr int cluster_blocks = 16, receivers = cluster_blocks / 2;
constexpr int most_sent_bytes = 4096, exchange_bytes = 64 + 2 * receivers * most_sent_bytes;

// Each block of one half of a cluster sends `fours` * 16 bytes to each of the other half and waits for what comes from
// there, as the prototype does: 8 lanes beside each other send 128 bytes to one block.
__global__ void __launch_bounds__(256, 1) mail_rounds(int rounds, int fours) {
  const prototype::Memory memory;
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = int(cluster.block_rank()), of_half = rank % receivers, other_half = receivers - rank + of_half;
  const prototype::Peer receiver(memory, unsigned(other_half + int(threadIdx.x) / 8 % receivers));
  const unsigned bytes = unsigned(fours * receivers * 16);
  const auto box = [](int round) { return prototype::mailbox_bytes * (round & 1); };
  if (threadIdx.x == 0)
    for (int round = 0; round < 2; ++round) memory.open(box(round), bytes);
  cluster.sync();
  for (int round = 0; round < rounds; ++round) {
    const int place = 64 + (round & 1) * receivers * most_sent_bytes + of_half * fours * 16;
    for (int n = int(threadIdx.x); n < fours * receivers; n += 256) {  // of the same receiver
      const int four = n / 8 / receivers * 8 + n % 8;
      receiver.push(place + four * 16, box(round), prototype::Four{});
    }
    memory.wait(box(round), round >> 1);
    __syncthreads();  // nobody is left behind by two uses
    if (threadIdx.x == 0) memory.expect(box(round), bytes);
  }
}

__global__ void __launch_bounds__(256, 1) l2_reads(int rounds, const float4* from, int fours, float* out) {
  float sum = 0;
  for (int i = 0; i < rounds; ++i)
    for (int n = int(threadIdx.x); n < fours; n += 1024) {
      float4 got[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) got[j] = n + 256 * j < fours ? __ldcg(from + n + 256 * j) : float4{};
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += got[j].x + got[j].y + got[j].z + got[j].w;  // all, or less would be read
    }
  if (sum == 1.5f) *out = sum;
}
// Each number is the place of the next.
__global__ void l2_chain(int rounds, const unsigned* next, unsigned* out) {
  unsigned at = 0;
  for (int i = 0; i < rounds; ++i) at = __ldcg(next + at);
  if (at == ~0u) *out = at;
}

template <class T>
T* device_array(size_t count) {
  T* array;
  must(cudaMalloc(&array, count * sizeof(T)), "memory");
  must(cudaMemset(array, 0, count * sizeof(T)), "memory");
  return array;
}

inline void measure_clocks(const Table& table, int multiprocessors) {
  std::vector<long long> cycles(static_cast<size_t>(multiprocessors)), nanoseconds(cycles.size());
  long long* on_device = device_array<long long>(2 * cycles.size());
  float* out = device_array<float>(1);
  for (int i = 0; i < 20; ++i)  // the first of them raise the clocks
    must(launch(spin, {multiprocessors, 256}, on_device, on_device + cycles.size(), out), "spin");
  const size_t bytes = cycles.size() * sizeof(long long);
  must(cudaMemcpy(cycles.data(), on_device, bytes, cudaMemcpyDeviceToHost), "spin");
  must(cudaMemcpy(nanoseconds.data(), on_device + cycles.size(), bytes, cudaMemcpyDeviceToHost), "spin");
  std::vector<double> megahertz;
  for (size_t i = 0; i < cycles.size(); ++i) megahertz.push_back(1e3 * double(cycles[i]) / double(nanoseconds[i]));
  std::sort(megahertz.begin(), megahertz.end());
  table.add("multiprocessors", multiprocessors, "");
  table.add("clock", megahertz[megahertz.size() / 2], "MHz");
  table.add("clock-slowest", megahertz.front(), "MHz");
}

inline void measure_barriers(const Table& table, int multiprocessors) {
  const auto of_grid = [&](int blocks, int threads) {
    return microseconds_a_round(
        [&](int rounds) { must(launch(grid_barriers, {blocks, threads, 1, true}, rounds), "grid barriers"); });
  };
  table.add("grid-barrier", of_grid(multiprocessors, 256), "us");
  table.add("grid-barrier-65-blocks", of_grid(65, 256), "us");
  table.add("grid-barrier-of-warps", of_grid(multiprocessors, 32), "us");
  for (int blocks : {multiprocessors, 64}) {
    unsigned* count = device_array<unsigned>(1);
    const double us = microseconds_a_round([&](int rounds) {
      must(cudaMemsetAsync(count, 0, sizeof *count), "counted barriers");
      must(launch(counted_barriers, {blocks, 256, 1, true}, rounds, count), "counted barriers");
    });
    table.add(blocks == 64 ? "counted-barrier-64-blocks" : "counted-barrier", us, "us");
  }
  for (int cluster : {2, 4, 8, 16}) {
    const double us = microseconds_a_round(
        [&](int rounds) { must(launch(cluster_barriers, {cluster, 256, cluster}, rounds), "cluster barriers"); });
    table.add("cluster-barrier-" + std::to_string(cluster), us, "us");
  }
  // Last: what is refused must not hide the others.
  const Shape both{4 * cluster_blocks, 256, cluster_blocks, true};
  const cudaError_t refused = launch(grid_barriers, both, 10);
  if (refused != cudaSuccess) std::printf("cooperative clusters: %s\n", cudaGetErrorString(refused));
  table.add("cooperative-clusters-accepted", refused == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess, "");
}

inline void measure_mailboxes(const Table& table, int) {
  for (int clusters : {1, 7}) {
    const Shape shape{clusters * cluster_blocks, 256, cluster_blocks, false, size_t(exchange_bytes)};
    if (most_clusters(mail_rounds, shape) < clusters) continue;  // they would run one after the other
    for (int kilobytes : {1, 4, 6, 8, 16, 32}) {
      const int fours = kilobytes * 1024 / 16 / receivers;
      const double us = microseconds_a_round(
          [&](int rounds) { must(launch(mail_rounds, shape, rounds, fours), "mailboxes"); }, 100, 1100);
      table.add("mailbox-" + std::to_string(kilobytes) + "kB-" + std::to_string(clusters), us, "us");
    }
  }
}

inline void measure_l2(const Table& table, int multiprocessors) {
  constexpr unsigned count = 1 << 18;
  unsigned* const numbers = device_array<unsigned>(count);
  for (int kilobytes : {16, 80, 160}) {
    const double us = microseconds_a_round(
        [&](int rounds) {
          must(launch(l2_reads, {multiprocessors, 256}, rounds, reinterpret_cast<const float4*>(numbers),
                      kilobytes * 64, reinterpret_cast<float*>(numbers)),
               "reads");
        },
        10, 210);
    table.add("l2-" + std::to_string(kilobytes) + "kB", us, "us");
    table.add("l2-" + std::to_string(kilobytes) + "kB-rate", 1e-6 * multiprocessors * kilobytes * 1024 / us, "TB/s");
  }
  // One round through all of them, in random order.
  std::vector<unsigned> order(count), next(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  for (unsigned i = 0; i < count; ++i) next[order[i]] = order[(i + 1) % count];
  must(cudaMemcpy(numbers, next.data(), count * sizeof(unsigned), cudaMemcpyHostToDevice), "chain");
  const double us = microseconds_a_round(
      [&](int rounds) { must(launch(l2_chain, {1, 1}, rounds, numbers, numbers), "chain"); }, 1000, 5000);
  table.add("l2-latency", us, "us");
}

}  // namespace micro
