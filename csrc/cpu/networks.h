// How a CPU learns from many batches: with one network by all threads, with several by a thread for each.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels.h"

namespace ceprop::cpu {

template <class T, class Call>
using ManyBatches = Learned (*)(Call&, const DataSet<T>&, const Batches&, int threads);

// A readout learns where it lies. While it does, it is a copy: nothing of the network may change before the end.
template <class T>
class OwnReadout {
 public:
  explicit OwnReadout(Network<T>& network) : network_(network) {
    if (!network.shape.has_readout()) return;
    for (auto& [list, count] : lists()) {
      given_.push_back(list->back());
      copies_.emplace_back(given_.back(), given_.back() ? given_.back() + count : nullptr);
      if (given_.back()) list->back() = copies_.back().data();
    }
  }
  void store() const {
    for (size_t i = 0; i < copies_.size(); ++i) std::copy(copies_[i].begin(), copies_[i].end(), given_[i]);
  }
  ~OwnReadout() {
    for (size_t i = 0; i < given_.size(); ++i) lists()[i].first->back() = given_[i];
  }
  OwnReadout(const OwnReadout&) = delete;
  OwnReadout& operator=(const OwnReadout&) = delete;

 private:
  std::vector<std::pair<std::vector<T*>*, int64_t>> lists() const {
    const int readout = network_.shape.connection_count() - 1;
    return {{&network_.weights, network_.shape.weight_count(readout)}, {&network_.biases, network_.shape.classes}};
  }

  Network<T>& network_;
  std::vector<T*> given_;
  std::vector<std::vector<T>> copies_;
};

// Returns from how many batches the network has learned. Where one may not be kept, its parameters become those after
// the batch before: a kernel writes none then, so that it is called again for those that may.
template <class T, class Call>
Learned learn_with_one(Call& call, const DataSet<T>& data, Batches batches, ManyBatches<T, Call> kernel, int threads) {
  while (batches.count > 0) {
    const OwnReadout<T> readout(call.network);
    const Learned learned = kernel(call, data, batches, threads);
    if (learned.interrupted || learned.batches == batches.count) {
      if (learned.batches > 0) readout.store();
      return learned;
    }
    batches.count = learned.batches;
  }
  return {};
}

// Where the threads of a call see that it was interrupted: only the calling thread may ask Python.
inline thread_local const std::atomic<bool>* ended_here = nullptr;
inline bool has_ended_here() { return ended_here->load(std::memory_order_relaxed); }

// Learns with every network from its batches, and notes from how many each has learned. Returns whether the calling
// thread was interrupted. Throws what a thread has thrown, as std::bad_alloc.
template <class T, class Call>
bool learn_with_all(std::vector<Call>& calls, const DataSet<T>& data, std::vector<Batches>& batches, int64_t* learned,
                    ManyBatches<T, Call> kernel, bool (*interrupted)(), int threads) {
  const size_t networks = calls.size();
  if (networks == 1) {
    batches[0].interrupted = interrupted;
    const Learned one = learn_with_one(calls[0], data, batches[0], kernel, threads);
    learned[0] = one.batches;
    return one.interrupted;
  }
  std::atomic<bool> ended{false};
  std::atomic<size_t> next{0};
  std::exception_ptr thrown;
  std::mutex mutex;
  std::condition_variable finished;
  size_t working = std::min<size_t>(threads, networks);
  const auto work = [&] {
    ended_here = &ended;
    try {
      for (size_t r; !has_ended_here() && (r = next++) < networks;) {
        batches[r].interrupted = has_ended_here;
        learned[r] = learn_with_one(calls[r], data, batches[r], kernel, 1).batches;
      }
    } catch (...) {
      ended = true;
      const std::lock_guard lock(mutex);
      thrown = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    --working;
    finished.notify_one();
  };
  std::vector<std::thread> team;
  for (size_t thread = working; thread > 0; --thread) team.emplace_back(work);
  bool was_interrupted = false;
  {
    std::unique_lock lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return working == 0; })) {
      lock.unlock();
      if (!was_interrupted && interrupted()) ended = was_interrupted = true;
      lock.lock();
    }
  }
  for (std::thread& thread : team) thread.join();
  if (thrown) std::rethrow_exception(thrown);
  return was_interrupted;
}

}  // namespace ceprop::cpu
