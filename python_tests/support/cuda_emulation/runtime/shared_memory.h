// The shared memory of a block, between guard bytes that nobody may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace cuda_emulation {

class SharedMemory {
 public:
  SharedMemory() = default;
  // Floats that were not written are NaN.
  explicit SharedMemory(std::size_t bytes);

  char* data() const { return raw_ ? raw_.get() + guard : nullptr; }
  std::size_t bytes() const { return bytes_; }
  bool holds(const void* pointer) const {
    const char* p = static_cast<const char*>(pointer);
    return raw_ && p >= data() && p <= data() + bytes_;
  }
  bool is_near(std::uintptr_t address) const;

  // The block has exited: its neighbours in the cluster must not touch this any more.
  void retire();

  // The offset of a guard byte that was overwritten. Makes all of it readable, so it comes last.
  std::optional<std::ptrdiff_t> damage();

 private:
  static constexpr std::size_t guard = 4096;
  struct Release {
    std::size_t bytes;
    void operator()(char* raw) const;
  };
  std::size_t bytes_ = 0;
  std::unique_ptr<char, Release> raw_;
};

}  // namespace cuda_emulation
