// Who runs next, and whatever else is drawn from the seed.
#include "state.h"

namespace cuda_emulation {

Runtime runtime;

namespace {

std::uint32_t random32() {
  std::uint64_t z = (runtime.random_state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32);
}

Block& random_block() {
  const std::vector<Block*>& blocks = runtime.ready;
  Block* own = runtime.current ? runtime.current->block : nullptr;
  const bool stays = own && own->ready_position >= 0 && random_below(256) < runtime.schedule.stickiness;
  Block* block = stays ? own : blocks[random_below(static_cast<unsigned>(blocks.size()))];
  if (block == runtime.schedule.starved_block)
    block = blocks[static_cast<std::size_t>(block->ready_position + 1) % blocks.size()];
  return *block;
}

std::size_t random_place(const std::vector<Fiber*>& ready) {
  const auto draw = [&] { return random_below(static_cast<unsigned>(ready.size())); };
  std::size_t at = random_below(256) < runtime.schedule.of_last ? ready.size() - 1 : draw();
  for (int attempt = 0; attempt < 4 && ready[at]->warp == runtime.schedule.starved_warp; ++attempt) at = draw();
  return at;
}

void remove_from_ready(Block& block) {
  std::vector<Block*>& blocks = runtime.ready;
  Block* last = blocks.back();
  blocks[static_cast<std::size_t>(block.ready_position)] = last;
  last->ready_position = block.ready_position;
  blocks.pop_back();
  block.ready_position = -1;
}

}  // namespace

unsigned random_below(unsigned end) { return static_cast<unsigned>(std::uint64_t(random32()) * end >> 32); }

void seed_schedule() {
  runtime.random_state = options.seed * 0x2545f4914f6cdd1dull + 1;
  runtime.schedule = {};
  if (!options.random_order) return;
  constexpr unsigned stickiness[] = {0, 128, 200, 256};
  runtime.schedule.stickiness = stickiness[random_below(4)];
  constexpr unsigned of_last[] = {0, 192, 240, 256};
  runtime.schedule.of_last = of_last[random_below(4)];
}

void make_ready(Fiber& fiber) {
  Block& block = *fiber.block;
  fiber.waits_in = nullptr;
  block.ready.push_back(&fiber);
  if (block.ready_position >= 0) return;
  block.ready_position = static_cast<int>(runtime.ready.size());
  runtime.ready.push_back(&block);
}

Fiber* next_fiber() {
  if (runtime.ready.empty()) return nullptr;
  Block& block = options.random_order ? random_block() : *runtime.ready.back();
  const std::size_t at = options.random_order ? random_place(block.ready) : block.ready.size() - 1;
  Fiber* fiber = block.ready[at];
  block.ready[at] = block.ready.back();
  block.ready.pop_back();
  if (block.ready.empty()) remove_from_ready(block);
  return fiber;
}

void switch_away() {
  Fiber* next = next_fiber();
  if (!next) report_deadlock();
  switch_to(next);
}

void let_others_run() {
  make_ready(*runtime.current);
  switch_to(next_fiber());
}

void yield() {
  const Untracked untracked;
  if (++runtime.spins > options.spin_limit)
    stop("livelock: " + std::to_string(options.spin_limit) + " atomics without a barrier or an exit; " +
         name(*runtime.current) + " is running");
  let_others_run();
}

unsigned lane_index() { return runtime.current->lane; }
unsigned cluster_rank() { return runtime.current->block->rank; }
dim3 cluster_dimension() { return runtime.configuration.cluster; }

}  // namespace cuda_emulation
