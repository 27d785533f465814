#include "kernels.h"

#include "../cooperative_launch.cuh"
#include "run_op.cuh"

namespace ceprop::cuda::conv {

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  return launch_cooperatively(run_op<T>, problem, plan.layout.blocks, plan.shared_bytes, false, stream);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda::conv
