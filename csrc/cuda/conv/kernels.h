// What the host op launches for chains with convolutions. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "launch_plan.h"

namespace ceprop::cuda::conv {

// One launch on the stream, without waiting for it. T is float or double.
template <class T>
cudaError_t launch(const Plan& plan, const Problem<T>& problem, cudaStream_t stream);

}  // namespace ceprop::cuda::conv
