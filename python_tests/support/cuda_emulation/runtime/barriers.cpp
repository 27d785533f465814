// Where threads wait for each other, and what happens to those who wait when one exits.
#include <cstring>

#include "state.h"

namespace cuda_emulation {

namespace {

std::map<std::string, Site> sites;
std::set<std::string> called_sites;

Site& site_of(const char* file, int line) {
  struct Known {
    const char* file;
    int line;
    Site* site;
  };
  static std::vector<Known> known;
  for (const Known& one : known)
    if (one.file == file && one.line == line) return *one.site;
  const char* slash = std::strrchr(file, '/');
  const std::string name = std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
  Site& site = sites.try_emplace(name, Site{name, name == options.skipped_site}).first->second;
  known.push_back({file, line, &site});
  return site;
}

const Site& note(Site& site) {
  if (!site.called) called_sites.insert(site.name);
  site.called = true;
  return site;
}

void wait(Fiber& self, const char* operation, const Site& site) {
  self.waits_in = operation;
  self.site = &site;
}

// Whether the thread waited: not where the barrier is skipped.
bool enter(Barrier& barrier, const char* file, int line, bool predicate = false) {
  const Untracked untracked;
  Fiber& self = *runtime.current;
  const Site& site = note(site_of(file, line));
  if (site.skipped) return false;
  if (barrier.exited)
    stop("barrier divergence: " + name(self) + " waits in " + barrier.name + " at " + site.name + ", but " +
         name(*barrier.exited) + " has already exited");
  if (barrier.waiting.empty()) {
    barrier.site = &site;
    barrier.count = 0;
  } else if (options.check_call_sites && barrier.site != &site) {
    stop("barrier divergence: " + name(self) + " calls " + barrier.name + " at " + site.name + ", but " +
         name(*barrier.waiting[0]) + others(barrier.waiting.size() - 1) + " waits in the one at " + barrier.site->name);
  }
  barrier.count += predicate;
  barrier.waiting.push_back(&self);
  wait(self, barrier.name, site);
  if (barrier.waiting.size() == barrier.expected) {
    ++statistics.barriers;
    runtime.spins = 0;
    barrier.result = barrier.count;
    order(barrier.waiting);
    for (Fiber* fiber : barrier.waiting) make_ready(*fiber);
    barrier.waiting.clear();
  }
  switch_away();
  return true;
}

// All lanes that can still come have come.
bool is_complete(const Block& block, const Meeting& meeting) {
  const unsigned needed = meeting.mask & block.live_lanes[meeting.warp];
  return (meeting.arrived & needed) == needed;
}

void complete(Block& block, std::size_t at) {
  const Meeting meeting = block.meetings[at];
  block.meetings.erase(block.meetings.begin() + static_cast<std::ptrdiff_t>(at));
  ++statistics.barriers;
  runtime.spins = 0;
  void* arguments[32] = {};
  std::vector<Fiber*> group;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(meeting.arrived >> lane & 1)) continue;
    group.push_back(&block.fibers[meeting.warp * 32 + lane]);
    arguments[lane] = group.back()->argument;
  }
  if (meeting.combine) {
    meeting.combine(arguments, meeting.arrived);
    end_instructions(group);
  } else {
    order(group);
  }
  for (Fiber* fiber : group) make_ready(*fiber);
}

void meet(unsigned mask, const char* operation, void* argument, Combine combine, const Site& site) {
  Fiber& self = *runtime.current;
  Block& block = *self.block;
  if (!(mask >> self.lane & 1))
    fail(std::string(operation) + " at " + site.name + ": the calling lane is not in the mask");
  std::size_t at = 0;
  while (at < block.meetings.size() && (block.meetings[at].warp != self.warp || block.meetings[at].mask != mask)) ++at;
  if (at == block.meetings.size()) block.meetings.push_back({self.warp, mask, 0, operation, &site, combine});
  Meeting& meeting = block.meetings[at];
  const bool is_other = meeting.operation != operation && std::strcmp(meeting.operation, operation);
  if (is_other || (options.check_call_sites && meeting.site != &site))
    stop("warp divergence: " + name(self) + " calls " + operation + " at " + site.name +
         ", but lanes of its warp wait in " + meeting.operation + " at " + meeting.site->name);
  meeting.arrived |= 1u << self.lane;
  self.argument = argument;
  wait(self, operation, site);
  if (is_complete(block, meeting)) complete(block, at);
  switch_away();
}

}  // namespace

const std::set<std::string>& barrier_sites() { return called_sites; }

void reset_barrier_sites() {
  called_sites.clear();
  for (auto& [name, site] : sites) site.called = false;
}

const Site& called_site(const char* file, int line) { return note(site_of(file, line)); }

void prepare_sites() {
  for (auto& [name, site] : sites) site.skipped = name == options.skipped_site;
}

void block_barrier(const char* file, int line) { enter(runtime.current->block->barrier, file, line); }

int block_barrier(Reduction reduction, bool predicate, const char* file, int line) {
  Barrier& barrier = runtime.current->block->barrier;
  if (!enter(barrier, file, line, predicate)) return predicate;
  if (reduction == Reduction::count) return barrier.result;
  return reduction == Reduction::all ? barrier.result == static_cast<int>(barrier.expected) : barrier.result != 0;
}

void cluster_barrier(const char* file, int line) { enter(runtime.current->block->cluster->barrier, file, line); }

void grid_barrier(const char* file, int line) {
  if (!runtime.configuration.cooperative) fail("grid.sync in a launch that is not cooperative");
  enter(runtime.grid, file, line);
}

void warp_barrier(unsigned mask, const char* file, int line) {
  const Untracked untracked;
  const Site& site = note(site_of(file, line));
  if (!site.skipped) meet(mask, "__syncwarp", nullptr, nullptr, site);
}

void warp_collective(unsigned mask, const char* operation, void* argument, Combine combine, const char* file,
                     int line) {
  const Untracked untracked;
  meet(mask, operation, argument, combine, site_of(file, line));
}

Fiber* exit_fiber() {
  Fiber& self = *runtime.current;
  Block& block = *self.block;
  end_copies(self);
  self.exited = true;
  runtime.spins = 0;
  for (Barrier* barrier : {&block.barrier, &block.cluster->barrier, &runtime.grid}) {
    if (!barrier->waiting.empty())
      stop("barrier divergence: " + name(self) + " exits, but " + name(*barrier->waiting[0]) +
           others(barrier->waiting.size() - 1) + " waits in " + barrier->name + " at " + barrier->site->name);
    if (!barrier->exited) barrier->exited = &self;
  }
  block.live_lanes[self.warp] &= ~(1u << self.lane);
  for (std::size_t i = 0; i < block.meetings.size();) {
    const bool is_own = block.meetings[i].warp == self.warp;
    if (is_own && is_complete(block, block.meetings[i])) {
      complete(block, i);
      i = 0;
    } else {
      ++i;
    }
  }
  if (--block.live == 0) {
    end_shared_memory(block);
    block.shared.retire();
  }
  if (--runtime.live == 0) return nullptr;
  Fiber* next = next_fiber();
  if (!next) report_deadlock();
  return next;
}

}  // namespace cuda_emulation
