// Calls that came before, as CUDA graphs.
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "../../aten/call_arrays.h"
#include "../../aten/tensor_on.h"
#include "capture_stream.h"

namespace ceprop::cuda {

// A call on memory of its own, captured. Its graph keeps what a step needs.
template <class Call>
class Recording {
 public:
  template <class Enqueue>
  Recording(const Call& call, const at::TensorOptions& options, const Enqueue& enqueue)
      : call_(call), stream_(options.device().index()) {
    const auto own = [&](auto*& pointer, int64_t count) {
      using Number = std::remove_const_t<std::remove_reference_t<decltype(*pointer)>>;
      const at::ScalarType type = c10::CppTypeToScalarType<Number>::value;
      memory_.push_back(at::zeros({count}, options.dtype(type)));
      pointer = memory_.back().template mutable_data_ptr<Number>();
    };
    aten::for_each_input(call_, own);
    aten::for_each_output(call_, own);
    const c10::cuda::CUDAStreamGuard stream(stream_.get());
    graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      enqueue(call_);
    } catch (...) {
      try {
        graph_.capture_end();
      } catch (const c10::Error&) {  // only says that there was an error, which is the one to be told
        static_cast<void>(cudaGetLastError());
      }
      throw;
    }
    graph_.capture_end();
  }

  // The same call with other inputs and outputs.
  void replay(Call call) {
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
    done_.block(stream);  // perhaps another stream still runs it
    size_t next = 0;
    const auto given = [&](const auto* pointer) {
      const at::Tensor& own = memory_[next];
      return aten::tensor_on(pointer, own.sizes(), own.options());
    };
    aten::for_each_input(call, [&](auto*& pointer, int64_t) {
      memory_[next].copy_(given(pointer));
      ++next;
    });
    graph_.replay();
    aten::for_each_output(call, [&](auto*& pointer, int64_t) {
      given(pointer).copy_(memory_[next]);
      ++next;
    });
    done_.record(stream);
  }

  // Until nothing runs in its memory any more.
  void wait() const { done_.synchronize(); }

 private:
  Call call_;
  std::vector<at::Tensor> memory_;  // inputs, then outputs
  CaptureStream stream_;            // outlives the graph, with which torch frees workspaces of this stream
  at::cuda::CUDAGraph graph_;
  at::cuda::CUDAEvent done_;
};

// The last few calls that were unlike each other.
template <class Call>
class Recordings {
 public:
  template <class Enqueue>
  void run(const Call& call, const at::TensorOptions& options, bool tf32, bool takes_whole_phases,
           const Enqueue& enqueue) {
    aten::Key key;
    key.add(call);
    // Libraries set themselves up for each thread.
    key.add(options.device().index(), tf32, takes_whole_phases,
            std::hash<std::thread::id>{}(std::this_thread::get_id()));
    const std::lock_guard lock(mutex_);
    auto found = std::find_if(known_.begin(), known_.end(), [&](const Known& one) { return one.key == key; });
    if (found == known_.end()) {
      // For the first time, step by step: libraries set themselves up, which cannot be captured.
      enqueue(call);
      known_.push_front({.key = std::move(key), .recording = nullptr});
      if (known_.size() <= most_) return;
      if (known_.back().recording) known_.back().recording->wait();
      known_.pop_back();
      return;
    }
    known_.splice(known_.begin(), known_, found);
    if (!found->recording && !found->failed) record(*found, call, options, enqueue);
    if (found->recording)
      found->recording->replay(call);
    else
      enqueue(call);
  }

 private:
  // Both signs of beta, for a whole batch and for what is left at the end of the data.
  static constexpr size_t most_ = 4;
  struct Known {
    aten::Key key;
    std::unique_ptr<Recording<Call>> recording;
    bool failed = false;
  };

  // A graph has states of its own. Where there is no room for those, calls go on step by step.
  template <class Enqueue>
  static void record(Known& known, const Call& call, const at::TensorOptions& options, const Enqueue& enqueue) {
    try {
      known.recording = std::make_unique<Recording<Call>>(call, options, enqueue);
    } catch (const c10::Error& error) {
      known.failed = true;
      TORCH_WARN("a training step could not become a CUDA graph and runs kernel by kernel, which takes longer: ",
                 error.what_without_backtrace());
    }
  }

  std::list<Known> known_;  // the last first
  std::mutex mutex_;
};

// Never destroyed: when a program ends, CUDA may end first.
template <class Call>
Recordings<Call>& recordings_of() {
  static auto* recordings = new Recordings<Call>;
  return *recordings;
}

}  // namespace ceprop::cuda
