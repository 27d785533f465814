// The ops on CUDA tensors: planned on the host, one launch each on the current stream, without waiting for it.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../ops.h"
#include "aten/run.h"
#include "conv/kernels.h"
#include "conv/problem_of.h"
#include "devices.h"
#include "kernels.h"
#include "problem_of.h"

namespace ceprop {
namespace {

class Cuda {
 public:
  static constexpr bool has_gates = false;

  Cuda(const Tensor& x, Precision precision)
      : options_(x.options()), guard_(on_gpu(x).device()), precision_(precision) {}

  Tensor new_steps(int64_t phases) const { return at::empty({phases}, options_.dtype(at::kLong)); }

  // Without a look at the indices, which would wait for the device; one out of range ends in a device-side assertion.
  Tensor one_hot(const Tensor& target, const Tensor& x, int64_t classes) const {
    return at::zeros({x.size(0), classes}, options_).scatter_(1, target.unsqueeze(1), 1);
  }

  template <class Call>
  void run(const Call& call) const {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
    if (call.network.shape.has_convolutions())
      launch_by(planned(cuda::conv::shape_of(call, sizeof(T))), call);
    else
      launch_by(planned(cuda::shape_of(call, sizeof(T))), call);
  }

  // The kernels do it, without the host's waiting for the steps.
  void clear_unless_finite(const Tensor&, std::initializer_list<Lists>) const {}

 private:
  // Each kind of network has a shape, a plan, an argument and a kernel of its own.
  template <class Shape>
  auto planned(const Shape& shape) const {
    return cuda::plan_for(guard_.current_device().index(), shape, precision_);
  }
  template <class Planned, class Call>
  void launch_by(const Planned& planned, const Call& call) const {
    std::visit([&](const auto& plan) { launch_one(plan, call); }, planned);
  }
  template <class Call>
  void launch_one(const std::string& obstacle, const Call&) const {
    TORCH_CHECK_VALUE(false, obstacle);
  }
  template <class Call>
  void launch_one(const cuda::conv::LibraryCalls& calls, const Call& call) const {
    cuda::run_by_aten(call, options_, calls.tf32);
  }
  template <class Plan, class Call>
  void launch_one(const Plan& plan, const Call& call) const {
    const Tensor workspace = at::empty({plan.workspace_bytes}, options_.dtype(at::kByte));
    // Found beside the plan's type: that of dense networks, or of convolutions.
    C10_CUDA_CHECK(
        launch(plan, problem_of(call, plan, workspace.mutable_data_ptr()), at::cuda::getCurrentCUDAStream()));
  }

  // An op comes here when any of its tensors is on a GPU.
  static const Tensor& on_gpu(const Tensor& x) {
    TORCH_CHECK_VALUE(x.is_cuda(), "x must be on a GPU like the other tensors, got ", x.device());
    return x;
  }

  const at::TensorOptions options_;
  const c10::cuda::CUDAGuard guard_;
  const Precision precision_;
};

}  // namespace
}  // namespace ceprop

TORCH_LIBRARY_IMPL(ceprop_cuda, CUDA, m) {
  m.impl("relax", &ceprop::relax_op<ceprop::Cuda>);
  m.impl("ep_step", &ceprop::ep_step_op<ceprop::Cuda>);
  m.impl("cep_step", &ceprop::cep_step_op<ceprop::Cuda>);
}
