#include "kernels.h"

#include <algorithm>

#include "../block/launch.h"
#include "run.cuh"

namespace ceprop::cuda::teams {

namespace {

template <class T>
using Kernel = void (*)(Problem<T>);

template <class T, int Samples, class Name, TeamKind Kind>
Kernel<T> kernel_of_team(const Plan& plan) {
  if (!plan.moving.continual) return run_team<T, Samples, Name, void>;
  if constexpr (may_move(Kind, Samples, sizeof(T)))
    if (plan.moving.kind == Kind) return run_team<T, Samples, Name, Name>;
  return run_team<T, Samples, Name, InGrid>;
}
template <class T, int Samples>
Kernel<T> kernel_of(const Plan& plan) {
  return plan.layout.kind == TeamKind::block ? kernel_of_team<T, Samples, InBlock, TeamKind::block>(plan)
                                             : kernel_of_team<T, Samples, InCluster, TeamKind::cluster>(plan);
}
// A grid takes groups of the most samples.
template <class T>
Kernel<T> kernel_of(const Plan& plan) {
  constexpr int most = most_samples(sizeof(T));
  if (plan.layout.kind == TeamKind::grid) return kernel_of_team<T, most, InGrid, TeamKind::grid>(plan);
  if constexpr (sizeof(T) == 4) {
    if (plan.layout.samples == 1) return kernel_of<T, 1>(plan);
    if (plan.layout.samples == 3) return kernel_of<T, 3>(plan);
  }
  return kernel_of<T, most>(plan);
}

}  // namespace

cudaError_t read_device(Device& device) {
  int index = 0, major = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&index);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
  };
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.shared_bytes = shared;
  device.cluster_blocks = device.clusters = 0;
  // A newer device may run code that was compiled for an older one, without what that lacks.
  cudaFuncAttributes built{};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&built, run_team<float, 4, InGrid, void>);
  if (error != cudaSuccess || major < 9 || built.ptxVersion < 90) return error;

  // A cluster may not fit any of the device's processor clusters.
  const auto kernel = run_team<float, 4, InCluster, void>;
  error = allow(kernel, true);
  const Launch any(1, 32 * most_warps(4), shared, 1, false);
  if (error == cudaSuccess) error = cudaOccupancyMaxPotentialClusterSize(&device.cluster_blocks, kernel, &any);
  device.cluster_blocks = std::min(device.cluster_blocks, most_cluster_blocks);
  if (error != cudaSuccess || device.cluster_blocks < 2) {
    device.cluster_blocks = 0;
    return error;
  }
  const Launch one(device.cluster_blocks, 32 * most_warps(4), shared, device.cluster_blocks, false);
  return cudaOccupancyMaxActiveClusters(&device.clusters, kernel, &one);
}

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  const Kernel<T> kernel = kernel_of<T>(plan);
  const bool in_cluster = plan.layout.kind == TeamKind::cluster;
  if (const cudaError_t error = allow(kernel, in_cluster); error != cudaSuccess) return error;
  Launch launch(plan.blocks, 32 * plan.warps, plan.shared_bytes, in_cluster ? plan.layout.blocks : 1,
                plan.layout.kind == TeamKind::grid || problem.stages.op != Op::relax);
  launch.stream = stream;
  return cudaLaunchKernelEx(&launch, kernel, problem);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda::teams
