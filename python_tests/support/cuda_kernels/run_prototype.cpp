// Runs the prototype's kernel of benchmarks/gpu, unchanged, under the CUDA emulation, against loops in double.
//
//   run_prototype SEED SIZE [BARRIER]   small or full networks, without this barrier or wait for mail; a line each with
//                                       the worst error of a state, or the emulation's report
//   run_prototype sites                 the barriers and waits, a line each
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

#include "expected.h"
#include "relax_cluster.cuh"

namespace {

using Array = cuda_emulation::DeviceArray<float>;
using namespace prototype;

template <int Chunks, int Samples, int Blocks>
void run(int width, int outputs, int batch, int groups, int free_steps, int nudged_steps) {
  const Network net = random_network(width, outputs, batch, unsigned(batch));
  Array between(net.between), above(net.above), drive(net.drive), bias1(net.bias1), bias2(net.bias2),
      target(net.target);
  std::deque<Array> states;
  for (int i = 0; i < 6; ++i) states.emplace_back(std::size_t(batch) * std::size_t(i % 3 < 2 ? width : outputs));
  Problem problem{batch, width, outputs, groups, free_steps, nudged_steps, net.beta};
  problem.between = between.get();
  problem.above = above.get();
  problem.drive = drive.get();
  problem.bias1 = bias1.get();
  problem.bias2 = bias2.get();
  problem.target = target.get();
  for (int i = 0; i < 6; ++i) problem.states[i / 3][i % 3] = states[std::size_t(i)].get();
  const int of_cluster = groups * Samples, clusters = (batch + of_cluster - 1) / of_cluster;
  cuda_emulation::launch({.grid = unsigned(clusters * Blocks),
                          .block = threads,
                          .dynamic_shared_bytes = std::size_t(shared_bytes(width, Samples, groups)),
                          .cooperative = true,
                          .cluster = Blocks},
                         relax<Chunks, Samples, Blocks>, problem);
  std::array<std::array<std::vector<float>, 3>, 2> got;
  for (int i = 0; i < 6; ++i) got[i / 3][i % 3] = states[std::size_t(i)].values();
  std::printf("%.3g\t%d chunks, %d samples, %d blocks, %d groups, batch %d\n",
              worst_error(net, free_steps, nudged_steps, got, batch), Chunks, Samples, Blocks, groups, batch);
}

void run_small() {
  run<1, 3, 4>(128, 10, 5, 1, 3, 2);
  run<1, 4, 4>(128, 10, 7, 2, 3, 2);
  run<1, 2, 4>(128, 10, 3, 1, 2, 2);
  run<1, 1, 4>(128, 16, 3, 3, 2, 1);
}

void run_full() {
  run<4, 3, 16>(512, 10, 5, 1, 3, 2);
  run<4, 4, 16>(512, 10, 8, 2, 2, 1);
}

}  // namespace

int main(int count, char** words) try {
  if (count == 2) {
    run_small();
    for (const std::string& site : cuda_emulation::barrier_sites()) std::printf("%s\n", site.c_str());
    return 0;
  }
  cuda_emulation::options.seed = std::strtoull(words[1], nullptr, 10);
  if (count > 3) cuda_emulation::options.skipped_site = words[3];
  std::string(words[2]) == "full" ? run_full() : run_small();
} catch (const cuda_emulation::Error& error) {
  std::printf("%s\n", error.what());
}
