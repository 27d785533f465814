// These are what the host op launches for teams. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace ceprop::cuda::teams {

// Reads the current device's properties, or returns the error that asking gave.
cudaError_t read_device(Device& device);

// Launches once on the stream, and does not wait for it. T is float or double.
template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream);

}  // namespace ceprop::cuda::teams
