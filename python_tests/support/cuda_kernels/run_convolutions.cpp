// Runs one call of the kernel of chains with convolutions under the emulation.
#include "../../../csrc/cuda/conv/problem_of.h"
#include "../../../csrc/cuda/conv/run_op.cuh"
#include "calls.h"

template <class T, class Call>
void plan_and_launch(const Call& call, const cuda::Device& device, const Wanted& wanted) {
  namespace conv = cuda::conv;
  const conv::Planned planned =
      conv::plan_launch(device, conv::shape_of(call, sizeof(T)), wanted.precision, Engine::launch);
  if (!std::holds_alternative<conv::Plan>(planned)) throw std::runtime_error("has no plan of one launch");
  const conv::Plan& plan = std::get<conv::Plan>(planned);
  cuda_emulation::DeviceArray<unsigned char> workspace(plan.workspace_bytes);
  const conv::Problem<T> problem = conv::problem_of(call, plan, workspace.get());
  cuda_emulation::launch({.grid = static_cast<unsigned>(plan.layout.blocks),
                          .block = cuda::block_threads,
                          .dynamic_shared_bytes = static_cast<size_t>(plan.shared_bytes),
                          .cooperative = true},
                         conv::run_op<T>, problem);
}

int main(int, char** argv) { return run_program(argv); }
