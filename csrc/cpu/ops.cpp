// Registers the ops for CPU tensors.
#include <ATen/Parallel.h>
#include <torch/csrc/Exceptions.h>
#include <torch/library.h>

#include <chrono>

#include "../learn_op.h"
#include "../ops.h"
#include "aten/run.h"
#include "kernels.h"
#include "networks.h"
#include "team_size.h"
#include "threads.h"

namespace ceprop {
namespace {

const Kernels& kernels() {
  try {
    return chosen_kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// Whether Python has a signal to handle, and its handler raised.
bool interrupted() {
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

[[noreturn]] void raise_interrupt() {
  python_error error;
  const PyGILState_STATE state = PyGILState_Ensure();
  error.persist();
  PyGILState_Release(state);
  throw error;
}

int steps_of(const RelaxCall<float>& call) { return call.steps; }
int steps_of(const RelaxCall<double>& call) { return call.steps; }
template <class T>
int steps_of(const LearnCall<T>& call) {
  return call.free_steps + call.nudged_steps * (call.symmetric ? 3 : 1);
}

// A call takes as many threads as torch is set to, but no more than can run at once.
int threads_at_once() {
  const int asked = at::get_num_threads();
  if (oversubscribes()) return asked;
  const int allowed = allowed_threads();
  if (asked > allowed) {
    TORCH_WARN_ONCE("torch is set to ", asked, " threads, this process may use ", allowed,
                    " CPUs at once: ceprop_cuda takes ", allowed);
  }
  if (was_forked() && asked > 1) {
    TORCH_WARN_ONCE(
        "this process was forked from one that had used threads, which OpenMP does not survive: ceprop_cuda ",
        "takes one; start processes by the method 'spawn' or 'forkserver' for more");
    return 1;
  }
  return std::min(asked, allowed);
}

TeamSizes team_sizes;

// Says by how many threads a call runs: no more than have something to do, as the others would only be waited for, and
// fewer where that was found to be faster. Lives as long as the call.
class Team {
 public:
  // `op` tells calls apart that look alike.
  template <class Call>
  Team(const Call& call, int64_t op, int64_t batches = 1) : batches_(batches) {
    const int most = threads_at_once();
    if (oversubscribes()) {
      threads_ = most;
      return;
    }
    threads_ = threads_worth(work_between_barriers(call.network, call.batch.size, steps_of(call)), most);
    if (threads_ == 1) return;
    kind_ = {threads_,
             op,
             batches == 1,
             call.batch.size,
             steps_of(call),
             call.stop.tolerance.has_value(),
             static_cast<int64_t>(sizeof(*call.network.weights[0]))};
    for (const MapShape& layer : call.network.shape.layers) kind_.push_back(layer.units());
    threads_ = team_sizes.threads(kind_);
    began_ = seconds();
  }

  int threads() const { return threads_; }

  // The call has ended as it should.
  void note() const {
    // In a call of a few batches much is done once.
    if (kind_.empty() || (batches_ > 1 && batches_ < 16)) return;
    const double now = seconds();
    if (team_sizes.note(kind_, threads_, (now - began_) / static_cast<double>(batches_), now, batches_))
      TORCH_WARN_ONCE(
          "ceprop_cuda takes fewer than ", kind_[0],
          " threads for some calls, with which they are faster: ", "other programs seem to keep the cores busy");
  }

 private:
  static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  int64_t batches_;
  int threads_;
  double began_ = 0;
  TeamSizes::Kind kind_;
};

class Cpu {
 public:
  Cpu(const Tensor& x, Precision precision, Engine engine) : options_(x.options()), engine_(engine), set_(kernels()) {
    TORCH_CHECK_VALUE(precision == Precision::exact, "precision must be 'exact' on the CPU: the others are CUDA's");
    TORCH_CHECK_VALUE(engine != Engine::teams, "engine must not be 'teams' on the CPU: it is a GPU's");
  }

  Tensor new_steps(int64_t phases) const { return at::empty({phases}, at::kLong); }

  // Floats, whatever the indices are for.
  Tensor target_of(const Tensor& labels, const Tensor& x, int64_t classes) const {
    const auto* const first = labels.const_data_ptr<int64_t>();
    const auto [low, high] = std::minmax_element(first, first + labels.numel());
    TORCH_CHECK_VALUE(*low >= 0 && *high < classes, "class indices must lie in 0 .. ", classes - 1, ", got ", *low,
                      " .. ", *high);
    const Tensor result = at::zeros({x.size(0), classes}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "one_hot", [&] {
      auto* const to = result.mutable_data_ptr<scalar_t>();
      for (int64_t sample = 0; sample < x.size(0); ++sample) to[sample * classes + first[sample]] = 1;
    });
    return result;
  }

  template <class T>
  void run(RelaxCall<T>& call) const {
    run(call, set_.of<T>().relax);
  }
  template <class T>
  void run(EpCall<T>& call) const {
    run(call, set_.of<T>().ep_step);
  }
  template <class T>
  void run(CepCall<T>& call) const {
    run(call, set_.of<T>().cep_step);
  }

  template <class T>
  bool run(std::vector<CepCall<T>>& calls, const DataSet<T>& data, std::vector<Batches>& batches,
           int64_t* learned) const {
    return learn_with_all(calls, data, batches, learned, set_.of<T>().learn_continually);
  }
  template <class T>
  bool run(std::vector<DescentCall<T>>& calls, const DataSet<T>& data, std::vector<Batches>& batches,
           int64_t* learned) const {
    return learn_with_all(calls, data, batches, learned, set_.of<T>().descend);
  }

  [[noreturn]] void raise_interrupt() const { ceprop::raise_interrupt(); }

  void clear_unless_finite(const Tensor& steps, std::initializer_list<Lists> gradients) const {
    if (*steps.const_data_ptr<int64_t>() >= 0) return;
    for (const Lists& list : gradients)
      for (const Tensor& gradient : list) gradient.zero_();
  }

 private:
  template <class T, class Call>
  bool learn_with_all(std::vector<Call>& calls, const DataSet<T>& data, std::vector<Batches>& batches, int64_t* learned,
                      cpu::ManyBatches<T, Call> kernel) const {
    const std::string obstacle = obstacle_of(calls[0]);
    TORCH_CHECK_VALUE(engine_ != Engine::graph && obstacle.empty(), "only the fused kernels learn from many batches",
                      obstacle.empty() ? "" : ": ", obstacle);
    if (calls.size() > 1)
      return cpu::learn_with_all<T>(calls, data, batches, learned, kernel, interrupted, threads_at_once());
    const Team team(calls[0], reinterpret_cast<intptr_t>(kernel), batches[0].count);
    const bool ended = cpu::learn_with_all<T>(calls, data, batches, learned, kernel, interrupted, team.threads());
    if (!ended) team.note();
    return ended;
  }

  template <class Call>
  void run(Call& call, bool (*kernel)(const Call&, int)) const {
    call.stop.interrupted = interrupted;
    const std::string obstacle = obstacle_of(call);
    TORCH_CHECK_VALUE(engine_ != Engine::fused || obstacle.empty(), "engine must not be 'fused': ", obstacle);
    const bool fused = engine_ != Engine::graph && obstacle.empty();
    if (!fused) {
      if (cpu::run_by_aten(call, options_)) raise_interrupt();
      return;
    }
    const Team team(call, reinterpret_cast<intptr_t>(kernel));
    if (kernel(call, team.threads())) raise_interrupt();
    team.note();
  }

  // Why the fused kernels cannot run a call; empty if they can.
  template <class T>
  static std::string obstacle_of(const RelaxCall<T>& call) {
    return ceprop::obstacle_of(call.network.shape);
  }
  template <class T>
  static std::string obstacle_of(const LearnCall<T>& call) {
    const bool gated = call.gate != Gate::none && call.network.shape.has_convolutions();
    return gated ? "the fused kernels have no gate for convolutions" : ceprop::obstacle_of(call.network.shape);
  }

  const at::TensorOptions options_;
  const Engine engine_;
  const Kernels& set_;
};

}  // namespace
}  // namespace ceprop

TORCH_LIBRARY_IMPL(ceprop_cuda, CPU, m) {
  m.impl("relax", &ceprop::relax_op<ceprop::Cpu>);
  m.impl("ep_step", &ceprop::ep_step_op<ceprop::Cpu>);
  m.impl("cep_step", &ceprop::cep_step_op<ceprop::Cpu>);
  m.impl("learn", &ceprop::learn_op<ceprop::Cpu>);
}
