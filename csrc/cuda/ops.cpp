// The ops on CUDA tensors: planned on the host, one launch each on the current stream, or torch's operators with
// kernels around them in a CUDA graph, without waiting for the device.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../ops.h"
#include "aten/run.h"
#include "devices.h"
#include "kernels.h"
#include "problem_of.h"
#include "teams/kernels.h"

namespace ceprop {
namespace {

class Cuda {
 public:
  Cuda(const Tensor& x, Precision precision, Engine engine)
      : options_(x.options()), guard_(on_gpu(x).device()), precision_(precision), engine_(engine) {}

  Tensor new_steps(int64_t phases) const { return at::empty({phases}, options_.dtype(at::kLong)); }

  // Without a look at the indices, which would wait for the device; one out of range ends in a device-side assertion.
  Tensor one_hot(const Tensor& target, const Tensor& x, int64_t classes) const {
    return at::zeros({x.size(0), classes}, options_).scatter_(1, target.unsqueeze(1), 1);
  }

  template <class Call>
  void run(const Call& call) const {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
    if (engine_ == Engine::teams)
      run_by_team(call);
    else if (const std::string obstacle = obstacle_of(call); !obstacle.empty() || engine_ == Engine::graph)
      run_by_aten(obstacle, call);
    else
      run_planned(cuda::shape_of(call, sizeof(T)), call);
  }

  // The kernels do it, without the host's waiting for the steps.
  void clear_unless_finite(const Tensor&, std::initializer_list<Lists>) const {}

 private:
  // Why no network like this runs in one launch; empty if some do.
  static std::string obstacle_of(const NetworkShape& shape) {
    const std::string obstacle = ceprop::obstacle_of(shape);
    return obstacle.empty() && shape.has_convolutions() ? "the fused CUDA kernels take dense layers" : obstacle;
  }
  template <class T>
  static std::string obstacle_of(const RelaxCall<T>& call) {
    return obstacle_of(call.network.shape);
  }
  template <class T>
  static std::string obstacle_of(const LearnCall<T>& call) {
    return call.gate != Gate::none ? "the fused CUDA kernels have no gate" : obstacle_of(call.network.shape);
  }

  template <class Call>
  void run_by_team(const Call& call) const {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
    TORCH_CHECK_VALUE(precision_ == Precision::exact, "precision must be 'exact' for engine 'teams'");
    std::string obstacle = obstacle_of(call);
    if (obstacle.empty()) obstacle = cuda::teams::obstacle_of(call);
    TORCH_CHECK_VALUE(obstacle.empty(), "engine must not be 'teams': ", obstacle);
    const auto planned = cuda::plan_team_for(guard_.current_device().index(), cuda::shape_of(call, sizeof(T)));
    const auto* plan = std::get_if<cuda::teams::Plan>(&planned);
    TORCH_CHECK_VALUE(plan, "engine must not be 'teams': ", std::get<std::string>(planned));
    const Tensor broken = at::empty({1}, options_.dtype(at::kInt));
    C10_CUDA_CHECK(cuda::teams::launch(*plan, cuda::teams::problem_of(call, *plan, broken.mutable_data_ptr<int>()),
                                       at::cuda::getCurrentCUDAStream()));
  }

  template <class Call>
  void run_planned(const cuda::Shape& shape, const Call& call) const {
    const auto planned = cuda::plan_for(guard_.current_device().index(), shape, precision_);
    std::visit([&](const auto& plan) { launch_one(plan, call); }, planned);
  }
  template <class Call>
  void launch_one(const std::string& obstacle, const Call& call) const {
    run_by_aten(obstacle, call);
  }
  // `obstacle`: why it does not run in one launch, or nothing.
  template <class Call>
  void run_by_aten(const std::string& obstacle, const Call& call) const {
    TORCH_CHECK_VALUE(engine_ != Engine::launch, "engine must not be 'launch': ", obstacle);
    cuda::run_by_aten(call, options_, rounds());
  }
  // Whether torch's convolutions round their factors, as they can to one precision.
  bool rounds() const {
    if (precision_ == Precision::exact) return false;
    const int capability = cuda::properties_of(guard_.current_device().index()).compute_capability;
    TORCH_CHECK_VALUE(precision_ == Precision::tf32 && options_.dtype() == at::kFloat && capability >= 80,
                      "precision of what does not run in one launch must be 'exact', or 'tf32' for float32 on a device "
                      "of compute capability 8.0 or more");
    return true;
  }
  template <class Call>
  void launch_one(const cuda::Plan& plan, const Call& call) const {
    const Tensor workspace = at::empty({plan.workspace_bytes}, options_.dtype(at::kByte));
    C10_CUDA_CHECK(cuda::launch(plan, cuda::problem_of(call, plan, workspace.mutable_data_ptr()),
                                at::cuda::getCurrentCUDAStream()));
  }

  // An op comes here when any of its tensors is on a GPU.
  static const Tensor& on_gpu(const Tensor& x) {
    TORCH_CHECK_VALUE(x.is_cuda(), "x must be on a GPU like the other tensors, got ", x.device());
    return x;
  }

  const at::TensorOptions options_;
  const c10::cuda::CUDAGuard guard_;
  const Precision precision_;
  const Engine engine_;
};

}  // namespace
}  // namespace ceprop

TORCH_LIBRARY_IMPL(ceprop_cuda, CUDA, m) {
  m.impl("relax", &ceprop::relax_op<ceprop::Cuda>);
  m.impl("ep_step", &ceprop::ep_step_op<ceprop::Cuda>);
  m.impl("cep_step", &ceprop::cep_step_op<ceprop::Cuda>);
}
