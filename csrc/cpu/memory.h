// The memory of an op call, which takes all of it before the workers start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace ceprop {

// Blocks are aligned to cache lines. Training makes the same call over and over, and fresh pages of several megabytes
// cost as much as packing the weights into them: so each thread that calls ops keeps the blocks of its last calls, up
// to `kept_bytes`, for the next of the same size. Throws std::bad_alloc.
inline constexpr size_t kept_bytes = size_t(64) << 20;
void* take_block(size_t bytes);
void give_block(void* block, size_t bytes) noexcept;

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : bytes_(count * sizeof(T)), data_(static_cast<T*>(take_block(bytes_))) {}
  static Buffer zeros(int64_t count) {
    Buffer buffer(count);
    std::memset(buffer.data_, 0, buffer.bytes_);
    return buffer;
  }
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) give_block(data_, bytes_);
  }
  T* get() const { return data_; }

 private:
  size_t bytes_ = 0;
  T* data_ = nullptr;
};

}  // namespace ceprop
