#include "run.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include "../../aten/phases.h"
#include "../devices.h"
#include "../maps/kernels.h"
#include "kernels.h"
#include "recordings.h"

namespace ceprop::cuda {
namespace {

template <class T>
struct OnStream {
  static constexpr bool gains_by_batches = true;  // half as many launches; assumed, not measured
  static constexpr bool takes_whole_phases = true;
  static void pool(const aten::Pooling<T>& given) { C10_CUDA_CHECK(cuda::pool(given, stream())); }
  static void show(const aten::Showing<T>& given) { C10_CUDA_CHECK(cuda::show(given, stream())); }
  static void move(const aten::Move<T>& given) { C10_CUDA_CHECK(cuda::move(given, stream())); }
  static void relax(const aten::WholePhase<T>& given) {
    const int device = c10::cuda::current_device();
    const maps::Planned planned = maps_for(device, given.network.shape, given.samples(), sizeof(T));
    const maps::Plan& plan = std::get<maps::Plan>(planned);
    const maps::Problem<T> problem = maps::problem_of(given, plan.layout);
    C10_CUDA_CHECK(maps::relax(plan, problem, static_cast<int>(given.samples()), stream()));
  }

 private:
  static cudaStream_t stream() { return at::cuda::getCurrentCUDAStream(); }
};

}  // namespace

template <class Call>
void run_by_aten(const Call& call, const at::TensorOptions& options, bool tf32, bool takes_whole_phases) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  const auto enqueue = [=](const Call& one) {
    aten::Phases<T, OnStream<T>>(options, tf32, takes_whole_phases).run(one);
  };
  const bool is_captured = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  TORCH_CHECK(!(is_captured && call.stop.tolerance),
              "a tolerance cannot be captured in a CUDA graph where a call does not run in one launch: the host asks "
              "the device "
              "whether to go on; leave tolerance out");
  if (is_captured || call.stop.tolerance)
    enqueue(call);
  else
    recordings_of<Call>().run(call, options, tf32, takes_whole_phases, enqueue);
}

template void run_by_aten(const RelaxCall<float>&, const at::TensorOptions&, bool, bool);
template void run_by_aten(const EpCall<float>&, const at::TensorOptions&, bool, bool);
template void run_by_aten(const CepCall<float>&, const at::TensorOptions&, bool, bool);
template void run_by_aten(const RelaxCall<double>&, const at::TensorOptions&, bool, bool);
template void run_by_aten(const EpCall<double>&, const at::TensorOptions&, bool, bool);
template void run_by_aten(const CepCall<double>&, const at::TensorOptions&, bool, bool);

}  // namespace ceprop::cuda
