// Asynchronous copies: some land at once, the others when they are waited for, or as their thread exits.
#include <cstring>

#include "state.h"

namespace cuda_emulation {

namespace {

void land(const Copy& copy) {
  std::memcpy(copy.destination, copy.source, copy.copied);
  std::memset(copy.destination + copy.copied, 0, copy.zeros);
}

void end(const Copy& copy) {
  record_end(copy);
  if (!copy.landed) land(copy);
}

}  // namespace

void asynchronous_copy(void* destination, const void* source, std::size_t bytes, std::size_t zero_fill) {
  const Untracked untracked;
  Fiber& self = *runtime.current;
  Copy copy{static_cast<char*>(destination),
            static_cast<const char*>(source),
            bytes - zero_fill,
            zero_fill,
            self.batch,
            __builtin_return_address(0),
            random_below(4) == 0};
  record_start(copy);
  if (copy.landed) land(copy);
  self.copies.push_back(copy);
}

void asynchronous_commit() { ++runtime.current->batch; }

void asynchronous_wait(unsigned batches_left) {
  const Untracked untracked;
  Fiber& self = *runtime.current;
  const auto is_over = [&](const Copy& copy) { return copy.batch + batches_left < self.batch; };
  for (const Copy& copy : self.copies)
    if (is_over(copy)) end(copy);
  std::erase_if(self.copies, is_over);
}

void end_copies(Fiber& fiber) {
  for (const Copy& copy : fiber.copies) end(copy);
  fiber.copies.clear();
}

}  // namespace cuda_emulation
