// Global memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

namespace cuda_emulation {

// Aligned as by cudaMalloc, but of the exact size: what lies behind it belongs to nobody. Floats that were not written
// are NaN.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count)
      : count_(count), data_(static_cast<T*>(::operator new(count * sizeof(T), alignment))) {
    std::memset(static_cast<void*>(data_), 0xff, count * sizeof(T));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { set(values); }
  DeviceArray(std::size_t count, T value) : DeviceArray(count) { std::fill(data_, data_ + count, value); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { ::operator delete(data_, alignment); }

  void set(const std::vector<T>& values, std::size_t at = 0) { std::copy(values.begin(), values.end(), data_ + at); }

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::size_t size() const { return count_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }

 private:
  static constexpr std::align_val_t alignment{256};
  std::size_t count_;
  T* data_;
};

}  // namespace cuda_emulation
