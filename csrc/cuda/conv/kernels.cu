#include "kernels.h"

#include "run_op.cuh"

namespace ceprop::cuda::conv {

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  const auto kernel = run_op<T>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(plan.layout.blocks);
  config.blockDim = block_threads;
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, problem);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda::conv
