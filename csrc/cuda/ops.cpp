// The ops on CUDA tensors, on the current stream, without waiting for the device: planned on the host and launched
// once, or torch's operators with kernels around them in a CUDA graph.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../aten/tensor_on.h"
#include "../ops.h"
#include "aten/run.h"
#include "devices.h"
#include "teams/kernels.h"
#include "teams/problem_of.h"

namespace ceprop {
namespace {

class Cuda {
 public:
  Cuda(const Tensor& x, Precision precision, Engine engine)
      : options_(x.options()), guard_(on_gpu(x).device()), precision_(precision), engine_(engine) {}

  Tensor new_steps(int64_t phases) const { return at::empty({phases}, options_.dtype(at::kLong)); }

  // Without a look at the indices, which would wait for the device; one out of range ends in a device-side assertion.
  Tensor target_of(const Tensor& labels, const Tensor&, int64_t) const { return labels; }

  template <class Call>
  void run(const Call& call) const {
    if (engine_ == Engine::graph) return run_by_aten(call, false);
    std::string obstacle = obstacle_of_teams(call);
    if (obstacle.empty() && call.network.shape.has_convolutions()) {
      obstacle = obstacle_of_maps(call);
    } else if (obstacle.empty()) {
      const cuda::teams::Planned planned = planned_for(call);
      if (const auto* plan = std::get_if<cuda::teams::Plan>(&planned)) return run_by_team(call, *plan);
      obstacle = std::get<std::string>(planned);
    }
    TORCH_CHECK_VALUE(engine_ != Engine::teams || obstacle.empty(), "engine must not be 'teams': ", obstacle);
    run_by_aten(call, obstacle.empty());
  }

  // The kernels do it, without the host's waiting for the steps.
  void clear_unless_finite(const Tensor&, std::initializer_list<Lists>) const {}

 private:
  // Why teams of no kind take a call; nothing if some may.
  template <class Call>
  std::string obstacle_of_teams(const Call& call) const {
    if (precision_ != Precision::exact) return "teams have precision 'exact' alone";
    return ceprop::obstacle_of(call.network.shape);
  }
  // How teams run a call on dense layers, or why they do not.
  template <class Call>
  cuda::teams::Planned planned_for(const Call& call) const {
    if (const std::string obstacle = cuda::teams::obstacle_of(call); !obstacle.empty()) return obstacle;
    return cuda::plan_for(guard_.current_device().index(), cuda::teams::shape_of(call));
  }
  // Why clusters do not take the phases of a network with convolutions in which weights rest; nothing if they do.
  template <class Call>
  std::string obstacle_of_maps(const Call& call) const {
    const std::string obstacle = cuda::maps::obstacle_of(call.network, call.nudge.loss);
    if (!obstacle.empty()) return obstacle;
    const int bytes = static_cast<int>(options_.dtype().itemsize());
    const cuda::maps::Planned planned =
        cuda::maps_for(guard_.current_device().index(), call.network.shape, call.batch.size, bytes);
    const auto* reason = std::get_if<std::string>(&planned);
    return reason ? *reason : "";
  }
  template <class Call>
  void run_by_team(const Call& call, const cuda::teams::Plan& plan) const {
    const Tensor workspace = at::empty({plan.workspace_bytes}, options_.dtype(at::kByte));
    const auto problem = cuda::teams::problem_of(call, plan, workspace.mutable_data_ptr());
    C10_CUDA_CHECK(cuda::teams::launch(plan, problem, at::cuda::getCurrentCUDAStream()));
  }

  // Torch's operators want floats for class indices.
  template <class Call>
  void run_by_aten(Call call, bool takes_whole_phases) const {
    Tensor target;
    if (call.batch.labels) {
      const Tensor labels = aten::tensor_on(call.batch.labels, {call.batch.size, 1}, options_);
      target = at::zeros({call.batch.size, call.network.shape.classes}, options_).scatter_(1, labels, 1);
      call.batch.target = target.const_data_ptr<std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>>();
      call.batch.labels = nullptr;
    }
    cuda::run_by_aten(call, options_, rounds(), takes_whole_phases);
  }

  // Whether torch's operators round their factors.
  bool rounds() const {
    if (precision_ == Precision::exact) return false;
    TORCH_CHECK_VALUE(options_.dtype() == at::kFloat && at::cuda::getCurrentDeviceProperties()->major >= 8,
                      "precision must be 'exact', or 'tf32' for float32 on a device of compute capability 8.0 or more");
    return true;
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
