// A launch: its checks, its waves of resident blocks, its errors.
#include <algorithm>
#include <cstdint>

#include "state.h"

namespace cuda_emulation {

namespace {

std::uint64_t volume(dim3 extents) { return std::uint64_t(extents.x) * extents.y * extents.z; }

uint3 position(std::uint64_t index, dim3 extents) {
  return {static_cast<unsigned>(index % extents.x), static_cast<unsigned>(index / extents.x % extents.y),
          static_cast<unsigned>(index / extents.x / extents.y)};
}

void check(const LaunchConfiguration& configuration) {
  const dim3 grid = configuration.grid, block = configuration.block, cluster = configuration.cluster;
  const auto refuse = [](const std::string& why) { throw Error("invalid launch: " + why); };
  if (!volume(grid)) refuse("no blocks");
  if (!volume(block) || volume(block) > 1024) refuse("1 to 1024 threads per block");
  if (configuration.dynamic_shared_bytes > options.shared_bytes) refuse("too much shared memory");
  if (!volume(cluster) || volume(cluster) > options.cluster_blocks)
    refuse("clusters of 1 to " + std::to_string(options.cluster_blocks) + " blocks");
  if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) refuse("the grid is no multiple of the cluster");
  const std::uint64_t places = std::uint64_t(options.multiprocessors) * options.blocks_per_multiprocessor;
  if (configuration.cooperative && volume(grid) > places)
    refuse("too large to be cooperative, " + std::to_string(volume(grid)) + " blocks cannot be resident at once");
}

std::vector<std::uint64_t> order_of_clusters(std::uint64_t count) {
  std::vector<std::uint64_t> order(count);
  for (std::uint64_t i = 0; i < count; ++i) order[i] = i;
  if (options.random_order)
    for (std::uint64_t i = count - 1; i > 0; --i)
      std::swap(order[i], order[random_below(static_cast<unsigned>(i + 1))]);
  return order;
}

uint3 block_index(std::uint64_t cluster_index, unsigned rank) {
  const dim3 grid = runtime.configuration.grid, cluster = runtime.configuration.cluster;
  const dim3 clusters(grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z);
  const uint3 of_cluster = position(cluster_index, clusters);
  const uint3 within = position(rank, cluster);
  return {of_cluster.x * cluster.x + within.x, of_cluster.y * cluster.y + within.y,
          of_cluster.z * cluster.z + within.z};
}

void prepare_block(Block& block, Fiber* fibers) {
  const unsigned threads = runtime.threads_per_block;
  block.barrier.name = "__syncthreads";
  block.barrier.expected = threads;
  block.live = threads;
  block.live_lanes.assign((threads + 31) / 32, 0);
  block.shared = SharedMemory(runtime.configuration.dynamic_shared_bytes);
  block.fibers = fibers;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.id = static_cast<unsigned>(&fiber - runtime.fibers.data());
    fiber.block = &block;
    fiber.lane = i % 32;
    fiber.warp = i / 32;
    fiber.thread = position(i, runtime.configuration.block);
    block.live_lanes[fiber.warp] |= 1u << fiber.lane;
    prepare_fiber(fiber, fiber.id);
    make_ready(fiber);
  }
}

void prepare_wave(const std::uint64_t* cluster_indices, std::size_t clusters) {
  const std::size_t cluster_size = volume(runtime.configuration.cluster), threads = runtime.threads_per_block;
  const std::size_t blocks = clusters * cluster_size;
  runtime.live = static_cast<unsigned>(blocks * threads);
  runtime.spins = 0;
  runtime.ready.clear();
  runtime.fibers = std::vector<Fiber>(runtime.live);
  runtime.blocks = std::vector<Block>(blocks);
  runtime.clusters = std::vector<Cluster>(clusters);
  runtime.grid = {};
  runtime.grid.name = "grid.sync";
  runtime.grid.expected = runtime.live;
  begin_race_check();
  begin_mailboxes();
  for (std::size_t i = 0; i < blocks; ++i) {
    Block& block = runtime.blocks[i];
    block.rank = static_cast<unsigned>(i % cluster_size);
    block.index = block_index(cluster_indices[i / cluster_size], block.rank);
    block.cluster = &runtime.clusters[i / cluster_size];
    block.cluster->blocks.push_back(&block);
    block.cluster->barrier.name = "cluster.sync";
    block.cluster->barrier.expected = static_cast<unsigned>(cluster_size * threads);
    prepare_block(block, &runtime.fibers[i * threads]);
  }
  Schedule& schedule = runtime.schedule;
  schedule.starved_block = nullptr;
  schedule.starved_warp = ~0u;
  if (!options.random_order) return;
  if (random_below(2)) schedule.starved_block = &runtime.blocks[random_below(static_cast<unsigned>(blocks))];
  if (random_below(2) && threads > 32) schedule.starved_warp = random_below(static_cast<unsigned>(threads + 31) / 32);
}

// What threads wrote outside of shared memory, as far as it is seen in what lies around.
std::string damage() {
  for (Block& block : runtime.blocks)
    if (const auto at = block.shared.damage())
      return "write outside shared memory of block " + text(block.index) + ": byte offset " + std::to_string(*at) +
             " of " + std::to_string(block.shared.bytes()) + " [seed " + std::to_string(options.seed) + "]";
  return "";
}

}  // namespace

void run(const LaunchConfiguration& configuration, const std::function<void()>& thread) {
  if (runtime.current) fail("a launch within a kernel");
  check(configuration);
  runtime.configuration = configuration;
  runtime.thread = &thread;
  runtime.threads_per_block = static_cast<unsigned>(volume(configuration.block));
  runtime.failed = false;
  runtime.exception = nullptr;
  runtime.error.clear();
  builtins.block_dimension = configuration.block;
  builtins.grid_dimension = configuration.grid;
  seed_schedule();
  prepare_sites();

  const std::uint64_t cluster_size = volume(configuration.cluster);
  const std::uint64_t cluster_threads = cluster_size * runtime.threads_per_block;
  const std::vector<std::uint64_t> clusters = order_of_clusters(volume(configuration.grid) / cluster_size);
  std::uint64_t resident = clusters.size();
  if (!configuration.cooperative)
    resident = std::min(resident, std::max<std::uint64_t>(1, options.resident_threads / cluster_threads));
  prepare_stacks(static_cast<unsigned>(resident * cluster_threads));
  for (std::uint64_t begin = 0; begin < clusters.size() && !runtime.failed; begin += resident) {
    prepare_wave(&clusters[begin], std::min<std::uint64_t>(resident, clusters.size() - begin));
    switch_to(next_fiber());
    const std::string outside = damage();
    if (!runtime.failed && !outside.empty()) {
      runtime.failed = true;
      runtime.error = outside;
    }
  }
  end_race_check();
  if (runtime.exception) std::rethrow_exception(std::exchange(runtime.exception, nullptr));
  if (runtime.failed) throw Error(runtime.error);
}

}  // namespace cuda_emulation
