// Tensors on memory that others own.
#pragma once

#include <ATen/ATen.h>

namespace ceprop::aten {

// On the device of `options`, whose type of numbers does not count.
template <class T>
at::Tensor tensor_on(const T* memory, at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::for_blob(const_cast<T*>(memory), sizes)
      .options(options.dtype(c10::CppTypeToScalarType<T>::value))
      .target_device(options.device())
      .make_tensor();
}

}  // namespace ceprop::aten
