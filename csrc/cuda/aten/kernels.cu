#include "kernels.h"

#include "kernels.cuh"

namespace ceprop::cuda {

template <class T>
cudaError_t pool(const aten::Pooling<T>& given, cudaStream_t stream) {
  pool_windows<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template <class T>
cudaError_t show(const aten::Showing<T>& given, cudaStream_t stream) {
  show_units<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template <class T>
cudaError_t move(const aten::Move<T>& given, cudaStream_t stream) {
  move_units<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template cudaError_t pool<float>(const aten::Pooling<float>&, cudaStream_t);
template cudaError_t pool<double>(const aten::Pooling<double>&, cudaStream_t);
template cudaError_t show<float>(const aten::Showing<float>&, cudaStream_t);
template cudaError_t show<double>(const aten::Showing<double>&, cudaStream_t);
template cudaError_t move<float>(const aten::Move<float>&, cudaStream_t);
template cudaError_t move<double>(const aten::Move<double>&, cudaStream_t);

}  // namespace ceprop::cuda
