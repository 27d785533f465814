#include "memory.h"

#include <cstdlib>
#include <new>
#include <unordered_map>
#include <vector>

namespace ceprop {

namespace {

class Kept {
 public:
  ~Kept() { drop(); }

  void* take(size_t bytes) {
    const auto found = blocks_.find(bytes);
    if (found == blocks_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    total_ -= bytes;
    return block;
  }

  // Blocks that no call has asked for since make room for the one that was used last.
  void give(void* block, size_t bytes) {
    if (total_ + bytes > kept_bytes) drop();
    if (bytes > kept_bytes) return std::free(block);
    blocks_[bytes].push_back(block);
    total_ += bytes;
  }

 private:
  void drop() {
    for (const auto& [bytes, blocks] : blocks_)
      for (void* block : blocks) std::free(block);
    blocks_.clear();
    total_ = 0;
  }

  std::unordered_map<size_t, std::vector<void*>> blocks_;
  size_t total_ = 0;
};

thread_local Kept kept;

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

void* take_block(size_t bytes) {
  void* block = kept.take(rounded(bytes));
  if (block == nullptr) block = std::aligned_alloc(64, rounded(bytes));
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void give_block(void* block, size_t bytes) noexcept {
  try {
    kept.give(block, rounded(bytes));
  } catch (const std::bad_alloc&) {  // there was no memory to note the block
    std::free(block);
  }
}

}  // namespace ceprop
