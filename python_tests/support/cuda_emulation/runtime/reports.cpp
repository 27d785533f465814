// How a launch fails, and in which words.
#include <cstring>

#include "state.h"

namespace cuda_emulation {

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string name(const Fiber& fiber) { return "block " + text(fiber.block->index) + " thread " + text(fiber.thread); }

std::string others(std::size_t count) { return count ? " (and " + std::to_string(count) + " more)" : ""; }

void stop(const std::string& message) {
  runtime.tracking = false;
  runtime.error = message + " [seed " + std::to_string(options.seed) + "]";
  runtime.failed = true;
  if (!instrumented) throw Stop{};  // unwinds the stack of this thread, so that nothing leaks
  switch_to(nullptr, true);         // what the compiler calls at an access must not throw
  __builtin_unreachable();
}

void fail(const std::string& message) {
  runtime.tracking = false;
  if (!runtime.current) throw Error(message);
  stop(message + ", in " + name(*runtime.current));
}

void report_deadlock() {
  struct Group {
    const Fiber* example;
    std::size_t size;
  };
  constexpr std::size_t most = 12;
  std::vector<Group> groups;
  for (const Fiber& fiber : runtime.fibers) {
    if (!fiber.waits_in) continue;
    const auto is_alike = [&](const Group& group) {
      return group.example->block == fiber.block && group.example->site == fiber.site &&
             !std::strcmp(group.example->waits_in, fiber.waits_in);
    };
    std::size_t at = 0;
    while (at < groups.size() && !is_alike(groups[at])) ++at;
    if (at == groups.size()) groups.push_back({&fiber, 0});
    ++groups[at].size;
  }
  std::string message = "deadlock: no thread can run.";
  for (std::size_t i = 0; i < groups.size() && i < most; ++i) {
    const Fiber& example = *groups[i].example;
    message += "\n  block " + text(example.block->index) + ": " + std::to_string(groups[i].size) +
               " thread(s) wait in " + example.waits_in + " at " + example.site->name + ", e.g. thread " +
               text(example.thread);
  }
  if (groups.size() > most) message += "\n  ...";
  for (const Block& block : runtime.blocks)
    if (block.live < runtime.threads_per_block)
      message += "\n  block " + text(block.index) + ": " + std::to_string(runtime.threads_per_block - block.live) +
                 " thread(s) have exited";
  stop(message);
}

}  // namespace cuda_emulation
