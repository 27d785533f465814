// One stack per CUDA thread, and the step from one to another.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "state.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {
void fiber_main();
}  // namespace
}  // namespace cuda_emulation

#if defined(__x86_64__) && !defined(CUDA_EMULATION_UCONTEXT)
// Pushes what a called function must preserve, exchanges the stacks, and pops the same of the other one.
extern "C" void cuda_emulation_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_emulation_switch
.type cuda_emulation_switch,@function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_switch,.-cuda_emulation_switch
)");

namespace cuda_emulation {
namespace {

void* host_stack_pointer = nullptr;

void* start_of_fiber(char*, char* top) {
  void** pointer = reinterpret_cast<void**>(top);
  *--pointer = nullptr;
  *--pointer = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--pointer = nullptr;
  return pointer;
}

}  // namespace
}  // namespace cuda_emulation
#else
// For other processors. Slower: each step asks the operating system twice to exchange the signal mask.
#include <ucontext.h>

namespace cuda_emulation {
namespace {

ucontext_t host_context;
void* host_stack_pointer = &host_context;

void cuda_emulation_switch(void** save, void* load) {
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}

void* start_of_fiber(char* bottom, char* top) {
  top -= (sizeof(ucontext_t) + 63) / 64 * 64;
  ucontext_t* context = new (top) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = static_cast<std::size_t>(top - bottom);
  makecontext(context, fiber_main, 0);
  return context;
}

}  // namespace
}  // namespace cuda_emulation
#endif

namespace cuda_emulation {

Stacks stacks;

namespace {

constexpr std::size_t page = 4096;

#if defined(__SANITIZE_ADDRESS__)
const void* host_stack = nullptr;
std::size_t host_stack_bytes = 0;
void* host_fake_stack = nullptr;
bool came_from_host = false;

void start_switch(Fiber* from, const Fiber* to, bool for_ever) {
  came_from_host = !from;
  void** keep = for_ever ? nullptr : from ? &from->fake_stack : &host_fake_stack;
  __sanitizer_start_switch_fiber(keep, to ? to->stack : host_stack, to ? stacks.bytes_each : host_stack_bytes);
}
void finish_switch(const Fiber* to) {
  __sanitizer_finish_switch_fiber(to ? to->fake_stack : host_fake_stack, nullptr, nullptr);
}
void finish_first_switch() {
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!came_from_host) return;
  host_stack = bottom;
  host_stack_bytes = bytes;
}
void forget_old_frames(char* stack) { ASAN_UNPOISON_MEMORY_REGION(stack + page, stacks.bytes_each - page); }
#else
void start_switch(Fiber*, const Fiber*, bool) {}
void finish_switch(const Fiber*) {}
void finish_first_switch() {}
void forget_old_frames(char*) {}
#endif

void fiber_main() {
  finish_first_switch();
  Fiber* next = nullptr;
  try {
    runtime.tracking = instrumented;
    (*runtime.thread)();
    runtime.tracking = false;
    next = exit_fiber();
  } catch (const Stop&) {
  } catch (...) {
    runtime.tracking = false;
    runtime.exception = std::current_exception();
    runtime.failed = true;
  }
  switch_to(next, true);
  __builtin_unreachable();
}

}  // namespace

void prepare_stacks(unsigned count) {
  const std::size_t bytes_each = (options.stack_bytes + page - 1) / page * page;
  if (count <= stacks.count && bytes_each == stacks.bytes_each) return;
  if (stacks.begin) munmap(stacks.begin, stacks.bytes);
  stacks = {};
  const std::size_t bytes = bytes_each * count;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) throw Error("no address space for " + std::to_string(count) + " stacks");
  stacks = {static_cast<char*>(mapped), bytes, bytes_each, count};
  // The lowest page of each stays without access, for stacks that overflow.
  for (unsigned i = 0; i < count; ++i) mprotect(stacks.begin + i * bytes_each, page, PROT_NONE);
}

void prepare_fiber(Fiber& fiber, unsigned slot) {
  fiber.stack = stacks.begin + slot * stacks.bytes_each;
  forget_old_frames(fiber.stack);
  // Staggered, so that the tops of the stacks do not compete for the same lines of the cache.
  char* top = fiber.stack + stacks.bytes_each - slot % 61 * 192;
  fiber.stack_pointer = start_of_fiber(fiber.stack + page, top);
}

void switch_to(Fiber* next, bool for_ever) {
  Fiber* self = runtime.current;
  if (next == self) return;
  runtime.current = next;
  if (next) {
    builtins.thread_index = next->thread;
    builtins.block_index = next->block->index;
    builtins.dynamic_shared = next->block->shared.data();
  }
  start_switch(self, next, for_ever);
  cuda_emulation_switch(self ? &self->stack_pointer : &host_stack_pointer,
                        next ? next->stack_pointer : host_stack_pointer);
  finish_switch(self);
}

}  // namespace cuda_emulation
