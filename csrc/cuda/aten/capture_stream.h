// Streams to capture CUDA graphs on.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>
#include <vector>

namespace ceprop::cuda {

// A stream that no other code knows of, as long as this lives. Torch's pool hands the same few out again and again, and
// libraries' workspaces go by streams: one that two users share may be written by both at once, and torch frees it with
// the first graph that was captured there.
class CaptureStream {
 public:
  explicit CaptureStream(c10::DeviceIndex device) : device_(device) {
    const std::lock_guard lock(mutex());
    std::vector<cudaStream_t>& idle = idle_of(device);
    if (idle.empty()) {
      C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    } else {
      stream_ = idle.back();
      idle.pop_back();
    }
  }
  ~CaptureStream() {
    const std::lock_guard lock(mutex());
    idle_of(device_).push_back(stream_);
  }
  CaptureStream(const CaptureStream&) = delete;
  CaptureStream& operator=(const CaptureStream&) = delete;

  c10::cuda::CUDAStream get() const { return c10::cuda::getStreamFromExternal(stream_, device_); }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static std::vector<cudaStream_t>& idle_of(c10::DeviceIndex device) {
    static std::map<c10::DeviceIndex, std::vector<cudaStream_t>> idle;
    return idle[device];
  }

  c10::DeviceIndex device_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace ceprop::cuda
