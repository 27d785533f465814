// These are what the host op launches for teams. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"

namespace ceprop::cuda::teams {

// Reads how many clusters of device.cluster_blocks blocks run at once, or returns the error that asking gave.
cudaError_t read_clusters(cuda::Device& device);

// Launches once on the stream, and does not wait for it. T is float or double.
template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream);

}  // namespace ceprop::cuda::teams
