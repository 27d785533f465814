#include "kernels.h"

#include "kernels.cuh"

namespace ceprop::cuda::library {

template <class T>
cudaError_t pool(const Pooling<T>& given, cudaStream_t stream) {
  pool_windows<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template <class T>
cudaError_t show(const Showing<T>& given, cudaStream_t stream) {
  show_units<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template <class T>
cudaError_t move(const Move<T>& given, cudaStream_t stream) {
  move_units<T><<<blocks_of(given), block_threads, 0, stream>>>(given);
  return cudaGetLastError();
}

template cudaError_t pool<float>(const Pooling<float>&, cudaStream_t);
template cudaError_t pool<double>(const Pooling<double>&, cudaStream_t);
template cudaError_t show<float>(const Showing<float>&, cudaStream_t);
template cudaError_t show<double>(const Showing<double>&, cudaStream_t);
template cudaError_t move<float>(const Move<float>&, cudaStream_t);
template cudaError_t move<double>(const Move<double>&, cudaStream_t);

}  // namespace ceprop::cuda::library
