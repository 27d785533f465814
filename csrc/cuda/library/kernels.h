// The kernels around a library's convolutions: pooling with its way back, and the moves of units. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include "arguments.h"

namespace ceprop::cuda::library {

// One launch each on the stream, without waiting for it. T is float or double.
template <class T>
cudaError_t pool(const Pooling<T>& given, cudaStream_t stream);
template <class T>
cudaError_t show(const Showing<T>& given, cudaStream_t stream);
template <class T>
cudaError_t move(const Move<T>& given, cudaStream_t stream);

}  // namespace ceprop::cuda::library
