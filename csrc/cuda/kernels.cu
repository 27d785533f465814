#include "kernels.h"

#include <algorithm>

#include "cooperative_launch.cuh"
#include "run_op.cuh"

namespace ceprop::cuda {

namespace {

template <class T>
using Kernel = void (*)(Problem<T>);

template <class T>
Kernel<T> kernel_of(const Plan& plan) {
  const bool in_cluster = plan.exchange == Exchange::cluster;
  if (plan.precision == Precision::exact) return in_cluster ? run_op<T, Exact, InCluster> : run_op<T, Exact, InGrid>;
  if constexpr (sizeof(T) == 4) {
    if (plan.precision == Precision::tf32) return in_cluster ? run_op<T, Tf32, InCluster> : run_op<T, Tf32, InGrid>;
    return in_cluster ? run_op<T, Bf16, InCluster> : run_op<T, Bf16, InGrid>;
  }
  return nullptr;
}

}  // namespace

cudaError_t read_device(Device& device) {
  int index = 0, major = 0, minor = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&index);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
  };
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(minor, cudaDevAttrComputeCapabilityMinor);
  read(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  // A newer device may run code that was compiled for an older one, without what that lacks.
  cudaFuncAttributes built{};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&built, run_op<float, Exact, InGrid>);
  device.compute_capability = std::min(10 * major + minor, built.ptxVersion);
  device.shared_bytes = shared;
  device.cluster_blocks = 0;
  if (error != cudaSuccess || device.compute_capability < 90) return error;

  // A cluster may not fit any of the device's processor clusters.
  const auto kernel = run_op<float, Exact, InCluster>;
  error = allow(kernel, true);
  const Launch one(1, block_threads, shared, 1, false);
  if (error == cudaSuccess) error = cudaOccupancyMaxPotentialClusterSize(&device.cluster_blocks, kernel, &one);
  return error;
}

template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream) {
  return launch_cooperatively(kernel_of<T>(plan), problem, plan.layout.blocks, plan.shared_bytes,
                              plan.exchange == Exchange::cluster, stream);
}

template cudaError_t launch<float>(const Plan&, const Problem<float>&, cudaStream_t);
template cudaError_t launch<double>(const Plan&, const Problem<double>&, cudaStream_t);

}  // namespace ceprop::cuda
