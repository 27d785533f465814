// A kernel whose blocks wait for each other, launched so that all of them run at once.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace ceprop::cuda {

// Launches on the stream, without waiting for it: as a grid, or, `in_cluster`, as one cluster of all blocks.
template <class Problem>
cudaError_t launch_cooperatively(void (*kernel)(Problem), const Problem& problem, int blocks, int64_t shared_bytes,
                                 bool in_cluster, cudaStream_t stream) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // All that there is, not what this launch takes: another thread may be about to launch with more.
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && in_cluster)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  if (in_cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  } else {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = block_threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, problem);
}

}  // namespace ceprop::cuda
