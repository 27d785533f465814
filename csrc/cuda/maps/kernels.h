// What the host launches for the phases of chains with maps. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace ceprop::cuda::maps {

// Launches once on the stream, and does not wait for it: a cluster for each sample. T is float or double.
template <class T>
cudaError_t relax(const Plan& plan, const Problem<T>& problem, int samples, cudaStream_t stream);

}  // namespace ceprop::cuda::maps
