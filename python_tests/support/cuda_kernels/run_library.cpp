// Runs calls with torch's operators for the CPU and the kernels around them under the emulation; where the call wants a
// team that is a cluster, phases in which weights rest by such clusters. Reads "CALL RESULTS"
// for each from stdin and answers "done": starting a program with torch takes longer than most calls.
//
//   PROGRAM exact
//   PROGRAM tf32                 by the operators that may round their factors, which those for the CPU do not
//   PROGRAM CALL RESULTS SITE    one call, see run_program()
#include <iostream>

#include "../../../csrc/cuda/aten/kernels.cuh"
#include "../../../csrc/cuda/maps/phase.cuh"

#include "../../../csrc/cuda/maps/plan.h"
#include "calls.h"
#include "library_on_cpu.h"

bool tf32 = false;
Wanted wanted_now;

template <class T, class Call>
void plan_and_launch(const Call& call, const Wanted& wanted) {
  wanted_now = wanted;
  const bool by_clusters = wanted.team == 1;
  if (by_clusters)
    if (const std::string obstacle = cuda::maps::obstacle_of(call.network, call.nudge.loss); !obstacle.empty())
      throw std::runtime_error(obstacle);
  run_on_cpu<T>(call, tf32, by_clusters);
}

namespace ceprop {

template <class Kernel, class Given>
void emulate(Kernel kernel, const Given& given) {
  cuda_emulation::launch({.grid = cuda::blocks_of(given), .block = cuda::block_threads}, kernel, given);
}

template <class T>
void EmulatedKernels<T>::pool(const aten::Pooling<T>& given) {
  emulate(cuda::pool_windows<T>, given);
}
template <class T>
void EmulatedKernels<T>::show(const aten::Showing<T>& given) {
  emulate(cuda::show_units<T>, given);
}
template <class T>
void EmulatedKernels<T>::move(const aten::Move<T>& given) {
  emulate(cuda::move_units<T>, given);
}
template <class T>
void EmulatedKernels<T>::relax(const aten::WholePhase<T>& given) {
  const cuda::Device device{wanted_now.multiprocessors, wanted_now.shared_bytes, wanted_now.cluster_blocks, 1};
  const int blocks = wanted_now.cluster_blocks;
  const auto plan = cuda::maps::planning::try_plan(device, given.network.shape, sizeof(T), blocks);
  if (!plan) throw std::runtime_error("does not fit");
  cuda_emulation::launch({.grid = static_cast<unsigned>(given.samples() * blocks),
                          .block = 32 * cuda::maps::warps_of(sizeof(T)),
                          .dynamic_shared_bytes = static_cast<size_t>(plan->shared_bytes),
                          .cluster = static_cast<unsigned>(blocks)},
                         cuda::maps::relax_maps<T>, cuda::maps::problem_of(given, plan->layout));
}

template struct EmulatedKernels<float>;
template struct EmulatedKernels<double>;

}  // namespace ceprop

int main(int count, char** words) {
  if (count == 4) return run_program(words);
  tf32 = std::string(words[1]) == "tf32";
  std::string call, results;
  while (std::cin >> call >> results) {
    if (!run_one(call.c_str(), results.c_str())) return 1;
    std::cout << "done" << std::endl;
  }
  return 0;
}
