#include "kernels.h"

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

// This is a launch whose blocks form clusters, and if `meets` all run at once.
struct Configuration : cudaLaunchConfig_t {
  Configuration(int blocks, int warps, int64_t shared_bytes, int cluster_blocks, bool meets) : cudaLaunchConfig_t{} {
    gridDim = static_cast<unsigned>(blocks);
    blockDim = static_cast<unsigned>(32 * warps);
    dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    attrs = attributes_;
    if (cluster_blocks > 1) {
      cudaLaunchAttribute& cluster = attributes_[numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<unsigned>(cluster_blocks), 1, 1};
    }
    if (meets) {
      cudaLaunchAttribute& cooperative = attributes_[numAttrs++];
      cooperative.id = cudaLaunchAttributeCooperative;
      cooperative.val.cooperative = 1;
    }
  }
  Configuration(const Configuration&) = delete;

 private:
  cudaLaunchAttribute attributes_[2] = {};
};

template <class T>
cudaError_t allow(Kernel<T> kernel, bool in_cluster) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // It allows all that there is, not what this launch takes: another thread may be about to launch with more.
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && in_cluster)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

}  // namespace

cudaError_t read_clusters(cuda::Device& device) {
  device.clusters = 0;
  if (device.cluster_blocks < 2) return cudaSuccess;
  const auto kernel = run_team<float, 4, InCluster>;
  const cudaError_t error = allow<float>(kernel, true);
  if (error != cudaSuccess) return error;
  const Configuration config(device.cluster_blocks, most_warps(4), device.shared_bytes, device.cluster_blocks, false);
  return cudaOccupancyMaxActiveClusters(&device.clusters, kernel, &config);
}

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  const Layout& layout = plan.layout;
  const Kernel<T> kernel = kernel_of<T>(layout);
  if (const cudaError_t error = allow<T>(kernel, layout.blocks > 1); error != cudaSuccess) return error;
  Configuration config(layout.blocks * layout.teams, layout.warps, plan.shared_bytes, layout.blocks,
                       problem.stages.op != Op::relax);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, problem);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda::teams
