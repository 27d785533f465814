// How many turns accesses to shared memory take: the memory has 32 banks of 4 bytes, and each gives one word a turn.
//
// What the lanes of a warp do at once is not known here, where they run one after the other. Taken for one instruction
// are their n-th accesses from the same place of the code since they last met: wrong where a lane leaves one out in
// the midst of a loop and others that are served with it do not.
#include <algorithm>
#include <array>
#include <bit>
#include <unordered_map>

#include "state.h"

namespace cuda_emulation {

namespace {

struct Instruction {
  std::size_t bytes = 0;                       // of a lane
  std::array<std::uintptr_t, 32> addresses{};  // 0: the lane takes no part
};

std::map<std::uintptr_t, unsigned> most_turns;

// Lanes that are served at once: those of a warp, of half of one or of a quarter, 128 bytes of them.
unsigned turns_of(const Instruction& of, unsigned first, unsigned lanes) {
  std::array<std::vector<std::uintptr_t>, 32> words;
  std::size_t most = 0;
  for (unsigned lane = first; lane < first + lanes; ++lane) {
    const std::uintptr_t address = of.addresses[lane];
    for (std::uintptr_t word = address / 4; word * 4 < address + of.bytes && address; ++word) {
      std::vector<std::uintptr_t>& of_bank = words[word % 32];
      if (std::find(of_bank.begin(), of_bank.end(), word) == of_bank.end()) of_bank.push_back(word);
      most = std::max(most, of_bank.size());
    }
  }
  return static_cast<unsigned>(most);
}

void count_turns(const std::vector<Fiber*>& warp) {
  std::unordered_map<std::uintptr_t, std::vector<Instruction>> instructions;
  for (Fiber* fiber : warp) {
    std::unordered_map<std::uintptr_t, std::size_t> made;
    for (const SharedAccess& access : fiber->accesses) {
      std::vector<Instruction>& of_code = instructions[access.code];
      const std::size_t n = made[access.code]++;
      if (n == of_code.size()) of_code.push_back({access.bytes, {}});
      of_code[n].addresses[fiber->lane] = access.address;
    }
    fiber->accesses.clear();
  }
  for (const auto& [code, all] : instructions)
    for (const Instruction& one : all) {
      const unsigned lanes = one.bytes <= 4 ? 32 : one.bytes <= 8 ? 16 : 8;
      unsigned& most = most_turns[code];
      for (unsigned first = 0; first < 32; first += lanes) most = std::max(most, turns_of(one, first, lanes));
    }
}

}  // namespace

const std::map<std::uintptr_t, unsigned>& shared_memory_turns() { return most_turns; }

void note_access(const void* memory, std::size_t bytes, const void* caller) {
  Fiber& self = *runtime.current;
  const std::vector<Block*>& cluster = self.block->cluster->blocks;
  const auto holds = [&](const Block* block) { return block->shared.holds(memory); };
  if (std::none_of(cluster.begin(), cluster.end(), holds)) return;
  if (!std::has_single_bit(bytes) || bytes > 16)
    stop("no instruction moves " + std::to_string(bytes) + " bytes of shared memory, in " + name(self));
  self.accesses.push_back({reinterpret_cast<std::uintptr_t>(memory), bytes, address_in_file(caller)});
}

void end_instructions(const std::vector<Fiber*>& group) {
  if (!options.counts_turns) return;
  std::map<std::pair<const Block*, unsigned>, std::vector<Fiber*>> warps;
  for (Fiber* fiber : group) warps[{fiber->block, fiber->warp}].push_back(fiber);
  for (const auto& [_, warp] : warps) count_turns(warp);
}

}  // namespace cuda_emulation
