#include "run.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "kernels.h"
#include "phases.h"
#include "recordings.h"

namespace ceprop::cuda::library {
namespace {

template <class T>
struct OnStream {
  static void pool(const Pooling<T>& given) { C10_CUDA_CHECK(library::pool(given, stream())); }
  static void show(const Showing<T>& given) { C10_CUDA_CHECK(library::show(given, stream())); }
  static void move(const Move<T>& given) { C10_CUDA_CHECK(library::move(given, stream())); }

 private:
  static cudaStream_t stream() { return at::cuda::getCurrentCUDAStream(); }
};

}  // namespace

template <class Call>
void run(const Call& call, const at::TensorOptions& options, bool tf32) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  const auto enqueue = [options, tf32](const Call& one) { Phases<T, OnStream<T>>(options, tf32).run(one); };
  const bool is_captured = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  TORCH_CHECK(
      !(is_captured && call.stop.tolerance),
      "a tolerance cannot be captured in a CUDA graph where convolutions fill the GPU: the host asks the device "
      "whether to go on; leave tolerance out");
  if (is_captured || call.stop.tolerance)
    enqueue(call);
  else
    recordings_of<Call>().run(call, options, tf32, enqueue);
}

template void run(const RelaxCall<float>&, const at::TensorOptions&, bool);
template void run(const EpCall<float>&, const at::TensorOptions&, bool);
template void run(const CepCall<float>&, const at::TensorOptions&, bool);
template void run(const RelaxCall<double>&, const at::TensorOptions&, bool);
template void run(const EpCall<double>&, const at::TensorOptions&, bool);
template void run(const CepCall<double>&, const at::TensorOptions&, bool);

}  // namespace ceprop::cuda::library
