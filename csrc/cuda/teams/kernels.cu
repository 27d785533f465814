#include "kernels.h"

#include "../cooperative_launch.cuh"
#include "run.cuh"

namespace ceprop::cuda::teams {

namespace {

template <class T>
using Kernel = void (*)(Problem<T>);

template <class T, int Samples>
Kernel<T> kernel_of(bool in_cluster) {
  return in_cluster ? run_team<T, Samples, InCluster> : run_team<T, Samples, InBlock>;
}
template <class T>
Kernel<T> kernel_of(const Layout& layout) {
  const bool in_cluster = layout.blocks > 1;
  if constexpr (sizeof(T) == 8)
    return kernel_of<T, 2>(in_cluster);
  else
    return layout.samples == 1   ? kernel_of<T, 1>(in_cluster)
           : layout.samples == 3 ? kernel_of<T, 3>(in_cluster)
                                 : kernel_of<T, 4>(in_cluster);
}

}  // namespace

cudaError_t read_clusters(cuda::Device& device) {
  device.clusters = 0;
  if (device.cluster_blocks < 2) return cudaSuccess;
  const auto kernel = run_team<float, 4, InCluster>;
  if (const cudaError_t error = allow(kernel, true); error != cudaSuccess) return error;
  const int blocks = device.cluster_blocks;
  const Launch one(blocks, 32 * most_warps(4), device.shared_bytes, blocks, false);
  return cudaOccupancyMaxActiveClusters(&device.clusters, kernel, &one);
}

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  const Layout& layout = plan.layout;
  const Kernel<T> kernel = kernel_of<T>(layout);
  if (const cudaError_t error = allow(kernel, layout.blocks > 1); error != cudaSuccess) return error;
  Launch launch(layout.blocks * layout.teams, 32 * layout.warps, plan.shared_bytes, layout.blocks,
                problem.stages.op != Op::relax);
  launch.stream = stream;
  return cudaLaunchKernelEx(&launch, kernel, problem);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda::teams
