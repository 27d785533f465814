// Whether accesses to shared and global memory are ordered by barriers, or by fences and atomics.
//
// Vector clocks: a thread counts epochs, a new one at each barrier, and knows of each other thread an epoch up to which
// it is after it. For every four bytes the last accesses are kept, each with the epoch of its thread; one that the
// thread which comes now does not know is a race, whatever the order in which the two happened to run here.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <unordered_map>

#include "state.h"

extern "C" char __executable_start;

namespace cuda_emulation {

constinit bool instrumented = false;

namespace {

struct Record {
  std::uint32_t thread : 24;  // its id + 1; 0: no record
  std::uint32_t bytes : 4;    // of the four
  std::uint32_t atomic : 1;
  std::uint32_t lasting : 1;  // by a copy that may happen at any time until its thread waits for it
  std::uint32_t epoch;
  std::uint32_t code;  // offset of the instruction; 0: the end of a block
};

struct Cell {
  Record writes[2], reads[3];
};

constexpr std::uintptr_t page_words = 1024;

// The cells of all memory that was accessed, by pages.
class Shadow {
 public:
  void clear() {
    pages_.clear();
    for (Page& page : recent_) page = {};
  }
  Cell& operator[](std::uintptr_t word) {
    const std::uintptr_t number = word / page_words;
    Page& page = recent_[number % std::size(recent_)];
    if (!page.cells || page.number != number) page = {number, cells_of(number)};
    return page.cells[word % page_words];
  }

 private:
  struct Page {
    std::uintptr_t number = 0;
    Cell* cells = nullptr;
  };
  Cell* cells_of(std::uintptr_t number) {
    std::unique_ptr<Cell[]>& cells = pages_[number];
    if (!cells) cells = std::make_unique<Cell[]>(page_words);
    return cells.get();
  }
  std::unordered_map<std::uintptr_t, std::unique_ptr<Cell[]>> pages_;
  Page recent_[64];
};

struct Range {
  std::uintptr_t begin, end;
  bool holds(std::uintptr_t address) const { return address >= begin && address < end; }
};

Shadow shadow;
std::vector<Range> ignored;
std::unordered_map<const void*, Clock> atomics;
unsigned accesses_to_preemption = 0;

std::string code_place(std::uint32_t code) {
  static std::unordered_map<std::uint32_t, std::string> known;
  std::string& place = known[code];
  if (!place.empty()) return place;
  place = "?";
  char executable[4096] = {}, command[4400], line[1024];
  if (readlink("/proc/self/exe", executable, sizeof executable - 1) <= 0) return place;
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", executable,
                std::size_t(address_in_file(&__executable_start + code)));
  FILE* pipe = popen(command, "r");
  if (!pipe) return place;
  // From the innermost function out to the first that is no wrapper of the emulation's.
  for (bool wraps = true; std::fgets(line, sizeof line, pipe);) {
    const std::string path = line;
    if (wraps) place = path.substr(path.rfind('/') + 1, path.find_first_of("\n (") - path.rfind('/') - 1);
    wraps = wraps && path.find("cuda_emulation/device/") != std::string::npos;
  }
  pclose(pipe);
  return place;
}

std::string memory_name(std::uintptr_t address) {
  for (const Block& block : runtime.blocks) {
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(block.shared.data());
    if (address >= begin && address < begin + block.shared.bytes())
      return "shared memory of block " + text(block.index) + ", byte offset " + std::to_string(address - begin);
  }
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "global memory 0x%zx", std::size_t(address));
  return buffer;
}

std::string describe(const Record& record, bool write) {
  if (!record.code) return "end of block " + text(runtime.fibers[record.thread - 1].block->index);
  const std::string kind = record.atomic ? "atomic " : record.lasting ? "asynchronous " : "";
  return kind + (write ? "write" : "read") + " by " + name(runtime.fibers[record.thread - 1]) + " at " +
         code_place(record.code);
}

bool is_ordered(const Record& record, const Fiber& self) {
  if (record.lasting) return false;
  const std::uint32_t id = record.thread - 1;
  return id == self.id || (*self.known)[id] >= record.epoch;
}

bool conflict(const Record& before, const Record& now, const Fiber& self) {
  return before.thread && (before.bytes & now.bytes) && !(before.atomic && now.atomic) && !is_ordered(before, self);
}

// In place of a record that says no more than the new one; else, for want of room, of any.
template <std::size_t Count>
void remember(Record (&records)[Count], const Record& now, const Fiber& self) {
  Record* place = nullptr;
  for (Record& record : records) {
    if (!record.thread) {
      if (!place) place = &record;
    } else if (!(record.bytes & ~now.bytes) && is_ordered(record, self)) {
      place = &record;
      break;
    }
  }
  *(place ? place : &records[random_below(Count)]) = now;
}

void check(std::uintptr_t word, const Record& now, bool write) {
  const Fiber& self = *runtime.current;
  Cell& cell = shadow[word];
  const auto report = [&](const Record& before, bool was_write) {
    stop("data race on " + memory_name(word * 4) + ": " + describe(now, write) + ", unordered with the " +
         describe(before, was_write));
  };
  for (const Record& record : cell.writes)
    if (conflict(record, now, self)) report(record, true);
  if (!write) return remember(cell.reads, now, self);
  for (const Record& record : cell.reads)
    if (conflict(record, now, self)) report(record, false);
  remember(cell.writes, now, self);
}

// visit(word, which of its bytes) for all words of an access.
template <class Visit>
void for_words(std::uintptr_t address, std::size_t bytes, const Visit& visit) {
  for (std::uintptr_t word = address / 4; word * 4 < address + bytes; ++word) {
    unsigned of_word = 15;
    if (word * 4 < address) of_word &= 15u << (address - word * 4);
    if (word * 4 + 4 > address + bytes) of_word &= 15u >> (word * 4 + 4 - address - bytes);
    visit(word, of_word & 15u);
  }
}

struct Access {
  bool write, atomic = false, lasting = false;
};

void check(const void* memory, std::size_t bytes, const Access& access, const void* caller) {
  if (options.counts_turns) {
    if (caller && !access.lasting) note_access(memory, bytes, caller);
    return;
  }
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory);
  ++statistics.accesses;
  for (const Range& range : ignored)
    if (range.holds(address)) return;
  const Fiber& self = *runtime.current;
  const auto code = caller ? static_cast<std::uint32_t>(static_cast<const char*>(caller) - &__executable_start) : 0;
  for_words(address, bytes, [&](std::uintptr_t word, unsigned of_word) {
    const Record now{(self.id + 1) & 0xffffffu, of_word, access.atomic, access.lasting, self.epoch, code};
    check(word, now, access.write);
  });
}

// Takes back what record_start left.
template <std::size_t Count>
void forget_lasting(Record (&records)[Count], const Fiber& self) {
  for (Record& record : records)
    if (record.lasting && record.thread == self.id + 1) record = {};
}

void learn(Clock& knowledge, const Clock& more) {
  if (!more) return;
  Clock merged = std::make_shared<std::vector<std::uint32_t>>(*more);
  if (knowledge)
    for (std::size_t i = 0; i < merged->size(); ++i) (*merged)[i] = std::max((*merged)[i], (*knowledge)[i]);
  knowledge = merged;
}

Clock common_knowledge(const std::vector<Fiber*>& group) {
  Clock merged = std::make_shared<std::vector<std::uint32_t>>(*group[0]->known);
  std::vector<const void*> seen{group[0]->known.get()};
  for (const Fiber* fiber : group) {
    // After a barrier all of a block share one clock.
    if (std::find(seen.begin(), seen.end(), fiber->known.get()) != seen.end()) continue;
    seen.push_back(fiber->known.get());
    for (std::size_t i = 0; i < merged->size(); ++i) (*merged)[i] = std::max((*merged)[i], (*fiber->known)[i]);
  }
  for (const Fiber* fiber : group) (*merged)[fiber->id] = std::max((*merged)[fiber->id], fiber->epoch);
  return merged;
}

}  // namespace

// Executables with a fixed address start below 4 GiB; others count their addresses from where they start.
std::uintptr_t address_in_file(const void* caller) {
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(&__executable_start);
  return reinterpret_cast<std::uintptr_t>(caller) - 1 - (start >> 32 ? start : 0);
}

void begin_race_check() {
  shadow.clear();
  atomics.clear();
  if (!instrumented) return;
  accesses_to_preemption = 1 + random_below(2 * std::max(1u, options.preemption_period));
  const Clock nothing = std::make_shared<std::vector<std::uint32_t>>(runtime.fibers.size());
  for (Fiber& fiber : runtime.fibers) fiber.known = nothing;
}

void end_race_check() { ignored.clear(); }

void ignore_races(const void* pointer, std::size_t bytes) {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(pointer);
  ignored.push_back({begin, begin + bytes});
}

void order(const std::vector<Fiber*>& group) {
  if (!instrumented) return;
  end_instructions(group);
  const Clock merged = common_knowledge(group);
  for (Fiber* fiber : group) {
    fiber->known = merged;
    ++fiber->epoch;
  }
}

void record_access(const void* memory, std::size_t bytes, bool write, const void* caller) {
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory);
  if (address - reinterpret_cast<std::uintptr_t>(stacks.begin) < stacks.bytes) return;
  if (address - reinterpret_cast<std::uintptr_t>(&builtins) < sizeof builtins) return;
  if (options.preemption_period && --accesses_to_preemption == 0) {
    accesses_to_preemption = 1 + random_below(2 * options.preemption_period);
    if (!runtime.ready.empty()) let_others_run();
  }
  check(memory, bytes, {write}, caller);
}

void record_start(const Copy& copy) {
  if (!instrumented) return;
  check(copy.source, copy.copied, {.write = false, .lasting = true}, copy.caller);
  check(copy.destination, copy.copied + copy.zeros, {.write = true, .lasting = true}, copy.caller);
}

void record_end(const Copy& copy) {
  if (!instrumented) return;
  const Fiber& self = *runtime.current;
  for_words(reinterpret_cast<std::uintptr_t>(copy.source), copy.copied,
            [&](std::uintptr_t word, unsigned) { forget_lasting(shadow[word].reads, self); });
  for_words(reinterpret_cast<std::uintptr_t>(copy.destination), copy.copied + copy.zeros,
            [&](std::uintptr_t word, unsigned) { forget_lasting(shadow[word].writes, self); });
  check(copy.source, copy.copied, {.write = false}, copy.caller);
  check(copy.destination, copy.copied + copy.zeros, {.write = true}, copy.caller);
}

// The end of a block counts as a write to its shared memory after all that its threads did: others of its cluster must
// not use it later, nor before but unordered.
void end_shared_memory(Block& block) {
  if (!instrumented) return;
  std::vector<Fiber*> group;
  for (unsigned i = 0; i < runtime.threads_per_block; ++i) group.push_back(&block.fibers[i]);
  end_instructions(group);
  if (block.cluster->blocks.size() == 1) return;
  runtime.current->known = common_knowledge(group);
  check(block.shared.data(), block.shared.bytes(), {.write = true}, nullptr);
}

// Orders nothing by itself: what a thread knew at a fence before one atomic, another one knows from a fence after a
// later atomic on the same address.
void atomic_operation(const void* address, std::size_t bytes) {
  yield();
  if (!instrumented) return;
  const Untracked untracked;
  check(address, bytes, {.write = true, .atomic = true}, __builtin_return_address(0));
  Fiber& self = *runtime.current;
  Clock& passed_on = atomics[address];
  learn(self.acquired, passed_on);
  learn(passed_on, self.released);
}

void memory_fence() {
  if (!instrumented) return;
  const Untracked untracked;
  Fiber& self = *runtime.current;
  learn(self.known, self.acquired);
  self.acquired.reset();
  self.released = std::make_shared<std::vector<std::uint32_t>>(*self.known);
  (*self.released)[self.id] = self.epoch++;
}

void record_mail(const void* place, bool counts, const void* caller) {
  if (instrumented) check(place, 8, {.write = true, .atomic = counts}, caller);
}
void pass_on(Clock& to) {
  if (!instrumented) return;
  Fiber& self = *runtime.current;
  const Clock now = std::make_shared<std::vector<std::uint32_t>>(*self.known);
  (*now)[self.id] = self.epoch++;
  learn(to, now);
}
void learn_from(const Clock& passed_on, Fiber& fiber) {
  if (instrumented) learn(fiber.known, passed_on);
}

}  // namespace cuda_emulation
