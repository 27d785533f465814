// Mailboxes: bytes that are stored in a block's shared memory count there as they come, and whoever waits for them runs
// when all have. The counterpart of an mbarrier of one arrival and of st.async, which counts its bytes there.
//
// The uses of a mailbox follow each other. One is over when it was said how many bytes it expects and as many came;
// what comes before that was said counts for it. What senders did before is known to those who wait for a use that it
// was part of, and to nobody else.
#include "state.h"

namespace cuda_emulation {

namespace {

struct Waiting {
  Fiber* fiber;
  int use;
};
struct Mailbox {
  std::uint64_t arrived = 0, expected = 0;  // of the use that is not over
  bool told = false;                        // what it expects
  int over = 0;                             // uses
  Clock coming, came;                       // what is known by all that came until now, and until the last use was over
  std::vector<Waiting> waiting;
};
std::map<const void*, Mailbox> mailboxes;

Mailbox& opened(void* place) {
  const auto found = mailboxes.find(place);
  if (found == mailboxes.end()) fail("no mailbox is open there");
  return found->second;
}

void end_use(Mailbox& box) {
  if (!box.told || box.arrived < box.expected) return;
  if (box.arrived > box.expected)
    fail("a mailbox got " + std::to_string(box.arrived) + " bytes in a use of " + std::to_string(box.expected));
  box.arrived = 0;
  box.told = false;
  ++box.over;
  box.came = box.coming;
  runtime.spins = 0;
  std::erase_if(box.waiting, [&](const Waiting& one) {
    if (one.use >= box.over) return false;
    learn_from(box.came, *one.fiber);
    make_ready(*one.fiber);
    return true;
  });
}

}  // namespace

void begin_mailboxes() { mailboxes.clear(); }

void open_mailbox(void* place, std::uint64_t bytes) {
  const Untracked untracked;
  record_mail(place, false, __builtin_return_address(0));
  mailboxes[place] = {.expected = bytes, .told = true};
}

void expect_in_mailbox(void* place, std::uint64_t bytes) {
  const Untracked untracked;
  record_mail(place, true, __builtin_return_address(0));
  Mailbox& box = opened(place);
  if (box.told) fail("a mailbox is told what its next use expects before the last one is over");
  box.expected = bytes;
  box.told = true;
  end_use(box);
}

void send_to_mailbox(void* place, std::uint64_t bytes) {
  const Untracked untracked;
  record_mail(place, true, __builtin_return_address(0));
  Mailbox& box = opened(place);
  pass_on(box.coming);
  box.arrived += bytes;
  end_use(box);
  if (random_below(8) == 0) let_others_run();
}

void wait_for_mailbox(void* place, int use, const char* file, int line) {
  const Untracked untracked;
  const Site& site = called_site(file, line);
  if (site.skipped) return;
  record_mail(place, true, __builtin_return_address(0));
  Mailbox& box = opened(place);
  // A device tells odd uses from even ones, no more.
  if (box.over > use + 1) fail("a mailbox is a use ahead of who waits for it at " + site.name);
  if (box.over < use) fail("a mailbox is a use behind who waits for it at " + site.name);
  if (box.over > use) return learn_from(box.came, *runtime.current);
  Fiber& self = *runtime.current;
  self.waits_in = "a mailbox";
  self.site = &site;
  box.waiting.push_back({&self, use});
  switch_away();
}

}  // namespace cuda_emulation
