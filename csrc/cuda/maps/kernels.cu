#include "kernels.h"

#include "../block/launch.h"
#include "phase.cuh"

namespace ceprop::cuda::maps {

template <class T>
cudaError_t relax(const Plan& plan, const Problem<T>& problem, int samples, cudaStream_t stream) {
  if (const cudaError_t error = allow(relax_maps<T>, true); error != cudaSuccess) return error;
  const int blocks = plan.layout.blocks;
  Launch launch(samples * blocks, 32 * warps_of(sizeof(T)), plan.shared_bytes, blocks, false);
  launch.stream = stream;
  return cudaLaunchKernelEx(&launch, relax_maps<T>, problem);
}

template cudaError_t relax<float>(const Plan&, const Problem<float>&, int, cudaStream_t);
template cudaError_t relax<double>(const Plan&, const Problem<double>&, int, cudaStream_t);

}  // namespace ceprop::cuda::maps
