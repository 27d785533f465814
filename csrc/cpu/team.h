// The workers of one op call: who they are, how they wait for each other, how they share the work.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../model/shares.h"

namespace ceprop {

// At a barrier all workers wait until the last has come. It spins for some microseconds, the length of a step, then
// sleeps: where another process holds a core, spinning, or a turn given away, would cost a time slice at each barrier.
class Barrier {
 public:
  void wait(int workers) {
    if (workers == 1) return ends_.store(is_wanted(), std::memory_order_relaxed);
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == workers - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      ends_.store(is_wanted(), std::memory_order_relaxed);
      // In one order with what a worker does before it sleeps: this one sees it, or it sees the new phase.
      phase_.store(phase + 1, std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst) > 0) wake();
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 2000)
        pause();
      else
        sleep(phase);
    }
  }

  // A worker may want at any time that the call end before its work is done. It ends for all from the next barrier on,
  // so that they agree.
  void end() { wanted_.store(true, std::memory_order_relaxed); }
  bool is_wanted() const { return wanted_.load(std::memory_order_relaxed); }
  bool ends() const { return ends_.load(std::memory_order_relaxed); }

 private:
  void sleep(int phase) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    {
      std::unique_lock lock(mutex_);
      has_moved_.wait(lock, [&] { return phase_.load(std::memory_order_seq_cst) != phase; });
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
  void wake() {
    // Who has seen the old phase sleeps as soon as the mutex is free.
    mutex_.lock();
    mutex_.unlock();
    has_moved_.notify_all();
  }
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable has_moved_;
  alignas(64) std::atomic<bool> wanted_{false}, ends_{false};
};

// Asks `interrupted` about every twentieth of a second, and looks at the clock about every hundredth: neither costs a
// short step anything.
class Watch {
 public:
  explicit Watch(bool (*interrupted)()) : interrupted_(interrupted) {}

  // To be asked after every step.
  bool sees_interrupt() {
    if (!interrupted_ || --left_ > 0) return false;
    const Clock::time_point now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - looked_).count();
    steps_ = std::clamp<int64_t>(static_cast<int64_t>(0.01 / std::max(seconds, 1e-9) * static_cast<double>(steps_)), 1,
                                 2 * steps_);
    left_ = steps_;
    looked_ = now;
    if (now - asked_ < std::chrono::milliseconds(50)) return false;
    asked_ = now;
    return interrupted_();
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool (*interrupted_)();
  int64_t steps_ = 1, left_ = 1;  // until the clock is looked at
  Clock::time_point looked_ = Clock::now(), asked_ = looked_;
};

// Flushes denormal numbers to zero, and gives the thread its mode back at the end. Saturated sigmoids give such
// numbers, which cost a hundred times a normal one.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : mode_(_mm_getcsr()) { _mm_setcsr(mode_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(mode_); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(mode_));
    asm volatile("msr fpcr, %0" ::"r"(mode_ | (uint64_t(1) << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(mode_)); }
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  unsigned mode_;
#elif defined(__aarch64__)
  uint64_t mode_;
#endif
};

struct Range {
  int64_t begin, end;
};

// A worker is one thread of the team, in the parallel region.
struct Worker {
  int index, count;
  Barrier* barrier;
  Watch* watch;

  void wait() const { barrier->wait(count); }

  // Whether the call has ended, asked after a barrier. All workers agree.
  bool has_ended() const { return barrier->ends(); }

  // Whether the call ends here, asked after a step. All workers agree, if a barrier ends every step; else,
  // `independent`, each ends by itself.
  bool ends(bool independent) const {
    if (index == 0 && watch->sees_interrupt()) barrier->end();
    return independent ? barrier->is_wanted() : barrier->ends();
  }

  Range share(int64_t items) const { return {items * index / count, items * (index + 1) / count}; }

  // This worker takes consecutive items, shared by their cost: see first_of_share().
  Range share(const std::vector<double>& cost) const {
    return {first_of_share(cost, index, count), first_of_share(cost, index + 1, count)};
  }
};

// Runs body(worker) on `threads` threads at once. Body must not throw. Returns whether it was interrupted; see Stop.
template <class Body>
bool run_team(int threads, bool (*interrupted)(), const Body& body) {
  Barrier barrier;
  Watch watch(interrupted);
#ifdef __SANITIZE_THREAD__
  // The sanitizer does not see how OpenMP starts and joins its threads.
  std::vector<std::thread> team;
  for (int index = 0; index < threads; ++index)
    team.emplace_back([&, index] { body(Worker{index, threads, &barrier, &watch}); });
  for (std::thread& thread : team) thread.join();
#else
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    body(Worker{omp_get_thread_num(), omp_get_num_threads(), &barrier, &watch});
  }
#endif
  return barrier.is_wanted();
}

}  // namespace ceprop
