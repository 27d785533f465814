// What the host op launches. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "launch_plan.h"
#include "problem.h"

namespace ceprop::cuda {

// Reads what the current device is, or returns the error that asking for it gave.
cudaError_t read_device(Device& device);

// One launch on the stream, without waiting for it. T is float or double.
template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream);

}  // namespace ceprop::cuda
