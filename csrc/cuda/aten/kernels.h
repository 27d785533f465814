// The kernels around a library's convolutions and products: pooling with its way back, and the moves of units. No
// torch.
#pragma once

#include <cuda_runtime_api.h>

#include "../../aten/pointwise.h"

namespace ceprop::cuda {

// One launch each on the stream, without waiting for it. T is float or double.
template <class T>
cudaError_t pool(const aten::Pooling<T>& given, cudaStream_t stream);
template <class T>
cudaError_t show(const aten::Showing<T>& given, cudaStream_t stream);
template <class T>
cudaError_t move(const aten::Move<T>& given, cudaStream_t stream);

}  // namespace ceprop::cuda
