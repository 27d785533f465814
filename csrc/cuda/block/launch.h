// How kernels are launched whose blocks form clusters, or wait for each other so that all of them have to run at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace ceprop::cuda {

// Allows the kernel all shared memory that there is, not what one launch takes: another thread may be about to launch
// with more. In clusters it also allows more blocks than 8. It asks a device once for each kernel.
template <class Kernel>
cudaError_t allow(Kernel kernel, bool in_cluster) {
  static std::mutex mutex;
  static std::set<std::pair<Kernel, int>> allowed;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  const std::lock_guard lock(mutex);
  if (error != cudaSuccess || allowed.contains({kernel, device})) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && in_cluster)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) allowed.emplace(kernel, device);
  return error;
}

// This is a launch in clusters of so many blocks, where that is more than one; if `meets`, all blocks run at once.
struct Launch : cudaLaunchConfig_t {
  Launch(int blocks, int threads, int64_t shared_bytes, int cluster_blocks, bool meets) : cudaLaunchConfig_t{} {
    gridDim = static_cast<unsigned>(blocks);
    blockDim = static_cast<unsigned>(threads);
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
  Launch(const Launch&) = delete;

 private:
  cudaLaunchAttribute attributes_[2] = {};
};

}  // namespace ceprop::cuda
