// Runs calls with torch's operators for the CPU and the kernels around them under the emulation. Reads "CALL RESULTS"
// for each from stdin and answers "done": starting a program with torch takes longer than most calls.
//
//   PROGRAM        exact
//   PROGRAM tf32   by the operators that may round their factors, which those for the CPU do not
#include <iostream>

#include "../../../csrc/cuda/aten/kernels.cuh"
#include "calls.h"
#include "library_on_cpu.h"

bool tf32 = false;

template <class T, class Call>
void plan_and_launch(const Call& call, const Wanted&) {
  run_on_cpu<T>(call, tf32);
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

template struct EmulatedKernels<float>;
template struct EmulatedKernels<double>;

}  // namespace ceprop

int main(int count, char** words) {
  tf32 = count > 1 && std::string(words[1]) == "tf32";
  std::string call, results;
  while (std::cin >> call >> results) {
    if (!run_one(call.c_str(), results.c_str())) return 1;
    std::cout << "done" << std::endl;
  }
  return 0;
}
