#include "shared_memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "state.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#endif

namespace cuda_emulation {

namespace {

constexpr int guard_byte = 0xa5;

}  // namespace

SharedMemory::SharedMemory(std::size_t bytes) : bytes_(bytes) {
  const std::size_t all = (bytes + 2 * guard + 1023) / 1024 * 1024;
  char* raw = static_cast<char*>(std::aligned_alloc(1024, all));
  if (!raw) throw std::bad_alloc();
  raw_ = std::unique_ptr<char, Release>(raw, Release{all});
  std::memset(raw, guard_byte, all);
  std::memset(data(), 0xff, bytes);
  ASAN_POISON_MEMORY_REGION(raw, guard);
  ASAN_POISON_MEMORY_REGION(data() + bytes, all - guard - bytes);
}

void SharedMemory::Release::operator()(char* raw) const {
  ASAN_UNPOISON_MEMORY_REGION(raw, bytes);
  std::free(raw);
}

bool SharedMemory::is_near(std::uintptr_t address) const {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(raw_.get());
  return raw_ && address >= begin && address < begin + bytes_ + 2 * guard;
}

void SharedMemory::retire() {
  std::memset(data(), 0xff, bytes_);
  ASAN_POISON_MEMORY_REGION(data(), bytes_);
}

std::optional<std::ptrdiff_t> SharedMemory::damage() {
  const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(bytes_);
  ASAN_UNPOISON_MEMORY_REGION(raw_.get(), bytes_ + 2 * guard);
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(guard); ++i)
    for (const std::ptrdiff_t at : {end + i, -1 - i})
      if (static_cast<unsigned char>(data()[at]) != guard_byte) return at;
  return std::nullopt;
}

void* map_shared(const void* pointer, unsigned rank) {
  const Untracked untracked;
  const Block& own = *runtime.current->block;
  const std::vector<Block*>& blocks = own.cluster->blocks;
  if (rank >= blocks.size()) fail("map_shared_rank: the cluster has no block of rank " + std::to_string(rank));
  const Block& other = *blocks[rank];
  if (!other.live)
    fail("map_shared_rank: block " + text(other.index) +
         " has exited, and its shared memory with it; a cluster.sync is missing before the exit");
  if (!own.shared.holds(pointer)) fail("map_shared_rank: not a pointer into the shared memory of the block");
  return other.shared.data() + (static_cast<const char*>(pointer) - own.shared.data());
}

}  // namespace cuda_emulation

#if defined(__SANITIZE_ADDRESS__)
// The address sanitizer calls this before its own report.
extern "C" void __asan_on_error() {
  using namespace cuda_emulation;
  if (!runtime.current) return;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(__asan_get_report_address());
  std::fprintf(stderr, "cuda_emulation: memory error in %s, seed %llu\n", name(*runtime.current).c_str(),
               static_cast<unsigned long long>(options.seed));
  for (const Block& block : runtime.blocks) {
    const SharedMemory& memory = block.shared;
    if (!memory.is_near(address)) continue;
    const std::ptrdiff_t offset =
        static_cast<std::ptrdiff_t>(address - reinterpret_cast<std::uintptr_t>(memory.data()));
    std::fprintf(stderr, "cuda_emulation: shared memory of block %s: byte offset %td, size %zu%s\n",
                 text(block.index).c_str(), offset, memory.bytes(), block.live ? "" : " (the block has exited)");
  }
}
#endif
