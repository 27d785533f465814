// What tests and the other headers see of the runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "device/language.h"

namespace cuda_emulation {

struct LaunchConfiguration {
  dim3 grid = 1, block = 1;
  std::size_t dynamic_shared_bytes = 0;
  bool cooperative = false;
  dim3 cluster = 1;
};

struct Options {
  std::uint64_t seed = 0;           // of the order in which threads run, and of what else CUDA leaves open
  bool random_order = true;         // false: one order, whatever the seed
  bool check_call_sites = true;     // threads that meet in a barrier must have called it at the same line
  std::string skipped_site = {};    // a barrier, e.g. "file.cuh:123", that lets every thread pass
  unsigned preemption_period = 24;  // race build: memory accesses from one change of threads to the next; 0: never
  bool counts_turns = false;        // in place of races, see shared_memory_turns(); race build at -O0
  std::uint64_t spin_limit = 20'000'000;  // atomics without any barrier or exit before "livelock"

  unsigned multiprocessors = 132;  // a cooperative grid must fit into all of them at once
  unsigned blocks_per_multiprocessor = 1;
  unsigned cluster_blocks = 16;  // the largest cluster; 8 without the attribute for non-portable sizes
  std::size_t shared_bytes = 227 * 1024;

  std::size_t stack_bytes = 256 * 1024;  // of a thread; memory is taken as it is used
  unsigned resident_threads = 4096;      // a grid that is not cooperative runs in waves of at most so many
};
inline Options options;

struct Statistics {
  std::uint64_t barriers = 0;
  std::uint64_t accesses = 0;  // that the race build checked
};
inline Statistics statistics;

// What a launch throws: a race, a deadlock, something a device would refuse or leave undefined.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The barriers (block, warp, cluster, grid) that threads called since the last reset, also the skipped one.
const std::set<std::string>& barrier_sites();
void reset_barrier_sites();

// The race check of the next launch leaves out these bytes: for races that are meant.
void ignore_races(const void* pointer, std::size_t bytes);

void run(const LaunchConfiguration& configuration, const std::function<void()>& thread);

template <class Kernel, class... Arguments>
void launch(const LaunchConfiguration& configuration, Kernel kernel, Arguments... arguments) {
#if defined(CUDA_EMULATION_ARCH) && CUDA_EMULATION_ARCH < 900
  const dim3 cluster = configuration.cluster;
  if (cluster.x * cluster.y * cluster.z > 1) throw Error("clusters need sm_90");
#endif
  run(configuration, [&] { kernel(arguments...); });
}

// Of launches with options.counts_turns: how many turns of the banks the lanes that are served at once took, at most,
// in an access to their block's dynamic memory, by address of the instruction, as addr2line takes it. 1: no conflict.
const std::map<std::uintptr_t, unsigned>& shared_memory_turns();

// All that follows is called by kernels, through functions with the names that CUDA has for them.

struct Builtins {
  uint3 thread_index, block_index;
  dim3 block_dimension, grid_dimension;
  void* dynamic_shared;
};
inline constinit Builtins builtins{};

unsigned lane_index();
unsigned cluster_rank();
dim3 cluster_dimension();

enum class Reduction { count, all, any };
void block_barrier(const char* file, int line);
// Where the barrier is skipped, of the thread's own predicate alone.
int block_barrier(Reduction reduction, bool predicate, const char* file, int line);
void cluster_barrier(const char* file, int line);
void grid_barrier(const char* file, int line);
void warp_barrier(unsigned mask, const char* file, int line);

// The lanes of the mask meet, without any order between their memory accesses, and the last to come runs `combine` on
// the arguments of all: null where a lane has exited.
using Combine = void (*)(void** arguments, unsigned lanes);
void warp_collective(unsigned mask, const char* operation, void* argument, Combine combine, const char* file, int line);

void* map_shared(const void* pointer, unsigned rank);

void atomic_operation(const void* address, std::size_t bytes);
void memory_fence();
void asynchronous_copy(void* destination, const void* source, std::size_t bytes, std::size_t zero_fill);
void asynchronous_commit();
void asynchronous_wait(unsigned batches_left);

// A mailbox, 8 bytes of shared memory: an mbarrier that one thread arrives at in each use, saying how many bytes the
// use expects. They come by stores from elsewhere that count them, st.async on a device. Uses are counted from 0.
void open_mailbox(void* place, std::uint64_t bytes);       // before others know it; expected in use 0
void expect_in_mailbox(void* place, std::uint64_t bytes);  // in the next use, once one is over
void send_to_mailbox(void* place, std::uint64_t bytes);    // after they are stored
void wait_for_mailbox(void* place, int use, const char* file, int line);

void yield();  // lets other threads run
[[noreturn]] void fail(const std::string& message);

}  // namespace cuda_emulation
