// Workers that come to barriers up to about twice as late as others wait awake, so that many are about to sleep when
// the last one comes. Prints how many barriers all have passed.
//
//   PROGRAM WORKERS BARRIERS
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../../csrc/cpu/team.h"

int main(int, char** words) {
  const int workers = std::atoi(words[1]), barriers = std::atoi(words[2]);
  ceprop::Barrier barrier;
  std::atomic<int64_t> passed{0};
  std::vector<std::thread> threads;
  for (int index = 0; index < workers; ++index)
    threads.emplace_back([&, index] {
      uint32_t drawn = 7919u * static_cast<uint32_t>(index) + 1;
      for (int i = 0; i < barriers; ++i) {
        drawn = drawn * 1664525u + 1013904223u;
        const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(drawn >> 15);
        while (std::chrono::steady_clock::now() < until) {
        }
        barrier.wait(workers);
        passed.fetch_add(1, std::memory_order_relaxed);
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::printf("%lld\n", static_cast<long long>(passed.load()));
  return 0;
}
