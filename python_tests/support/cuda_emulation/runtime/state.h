// What the files of the runtime share. One launch at a time, all of it on one OS thread.
//
// Every function that kernels call starts with `Untracked`: accesses of the runtime itself are not checked for races.
// None holds memory of the heap while other threads run: after an error their stacks are left as they are.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../interface.h"
#include "shared_memory.h"

namespace cuda_emulation {

struct Block;

// What somebody knows of every thread: all that it did before this epoch of it, and in it.
using Clock = std::shared_ptr<std::vector<std::uint32_t>>;

struct Site {
  std::string name;
  bool skipped = false;
  bool called = false;  // since the last reset
};

// From global to shared memory, without the thread.
struct Copy {
  char* destination;
  const char* source;
  std::size_t copied, zeros;
  unsigned batch;
  const void* caller;
  bool landed;  // others may see it, though the thread has not waited
};

struct SharedAccess {
  std::uintptr_t address;
  std::size_t bytes;
  std::uintptr_t code;
};

// A CUDA thread.
struct Fiber {
  unsigned id = 0, lane = 0, warp = 0;
  uint3 thread{};
  Block* block = nullptr;

  bool exited = false;
  const char* waits_in = nullptr;  // null: runs, or could
  const Site* site = nullptr;
  void* argument = nullptr;  // of the warp's operation

  char* stack = nullptr;
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;  // of the address sanitizer

  std::vector<Copy> copies;  // that were not waited for
  unsigned batch = 0;

  std::vector<SharedAccess> accesses;  // since it last met others, if turns are counted

  std::uint32_t epoch = 1;
  Clock known;
  Clock released;  // known at the last fence, which later atomics pass on
  Clock acquired;  // passed on by atomics, known from the next fence on
};

struct Barrier {
  const char* name = "";
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
  const Site* site = nullptr;
  int count = 0, result = 0;      // of predicates
  const Fiber* exited = nullptr;  // the first who can come no more
};

// An operation that lanes of a warp wait in.
struct Meeting {
  unsigned warp, mask, arrived;
  const char* operation;
  const Site* site;
  Combine combine;  // null: __syncwarp, which orders memory
};

struct Cluster {
  Barrier barrier;
  std::vector<Block*> blocks;
};

struct Block {
  uint3 index{};
  unsigned rank = 0;  // in the cluster
  Cluster* cluster = nullptr;
  Fiber* fibers = nullptr;
  unsigned live = 0;
  std::vector<unsigned> live_lanes;  // of each warp
  Barrier barrier;
  std::vector<Meeting> meetings;
  SharedMemory shared;

  std::vector<Fiber*> ready;
  int ready_position = -1;  // in Runtime::ready
};

// What else the seed decides: orders that uniform draws would hardly ever give.
struct Schedule {
  unsigned stickiness = 0;  // of 256: how often the next thread is one of the same block
  unsigned of_last = 0;     // the same: one of those that others have waited for least, mostly of the same warp
  const Block* starved_block = nullptr;
  unsigned starved_warp = ~0u;
};

struct Runtime {
  LaunchConfiguration configuration;
  const std::function<void()>* thread = nullptr;
  unsigned threads_per_block = 0;

  // The wave that is resident.
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  Barrier grid;
  unsigned live = 0;
  std::vector<Block*> ready;  // that have threads which could run

  Fiber* current = nullptr;  // null: the host
  bool tracking = false;     // whether accesses are those of a kernel, to be checked
  Schedule schedule;
  std::uint64_t random_state = 0;
  std::uint64_t spins = 0;  // since the last barrier or exit

  bool failed = false;
  std::string error;
  std::exception_ptr exception;  // that a kernel threw
};
extern Runtime runtime;

// Whether anything was compiled for the race check.
extern constinit bool instrumented;

class Untracked {
 public:
  Untracked() : before_(std::exchange(runtime.tracking, false)) {}
  Untracked(const Untracked&) = delete;
  Untracked& operator=(const Untracked&) = delete;
  ~Untracked() { runtime.tracking = before_; }

 private:
  bool before_;
};

// fibers.cpp
struct Stop {};  // ends a thread
struct Stacks {  // one mapping for all
  char* begin = nullptr;
  std::size_t bytes = 0, bytes_each = 0;
  unsigned count = 0;
};
extern Stacks stacks;
void prepare_stacks(unsigned count);
void prepare_fiber(Fiber& fiber, unsigned slot);
void switch_to(Fiber* next, bool for_ever = false);  // null: to the host

// scheduler.cpp
void seed_schedule();
unsigned random_below(unsigned end);
void make_ready(Fiber& fiber);
Fiber* next_fiber();  // null: none could run
void switch_away();
void let_others_run();

// barriers.cpp
void prepare_sites();
const Site& called_site(const char* file, int line);  // of something that skipped_site may leave out
Fiber* exit_fiber();                                  // the current one; returns who runs next, null after the last

// bank_conflicts.cpp
void note_access(const void* memory, std::size_t bytes, const void* caller);
void end_instructions(const std::vector<Fiber*>& group);  // which will do nothing at once with what they did until now

// copies.cpp
void end_copies(Fiber& fiber);

// mailboxes.cpp
void begin_mailboxes();

// race_check.cpp
void begin_race_check();
void end_race_check();
void order(const std::vector<Fiber*>& group);  // each knows what all did until now
void record_access(const void* memory, std::size_t bytes, bool write, const void* caller);
void record_start(const Copy& copy);
void record_end(const Copy& copy);
void end_shared_memory(Block& block);
void record_mail(const void* place, bool counts, const void* caller);  // or opens the mailbox
void pass_on(Clock& to);                                               // what this thread did until now
void learn_from(const Clock& passed_on, Fiber& fiber);
std::uintptr_t address_in_file(const void* caller);  // as addr2line takes it

// reports.cpp
std::string text(uint3 v);
std::string name(const Fiber& fiber);
std::string others(std::size_t count);
[[noreturn]] void stop(const std::string& message);
[[noreturn]] void report_deadlock();

}  // namespace cuda_emulation
