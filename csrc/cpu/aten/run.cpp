#include "run.h"

#include <ATen/Parallel.h>

#include "../../aten/phases.h"
#include "../team.h"
#include "../threads.h"
#include "kernels.h"

namespace ceprop::cpu {
namespace {

struct Interrupted {};

// One thread where OpenMP would wait for those that a fork has left behind.
class ThreadsAfterFork {
 public:
  ThreadsAfterFork() {
    if (was_forked()) at::set_num_threads(1);
  }
  ~ThreadsAfterFork() {
    if (was_forked()) at::set_num_threads(before_);
  }

 private:
  const int before_ = at::get_num_threads();
};

}  // namespace

template <class Call>
bool run_by_aten(const Call& call, const at::TensorOptions& options) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  const ThreadsAfterFork threads;
  Watch watch(call.stop.interrupted);
  const auto after_step = [&] {
    if (watch.sees_interrupt()) throw Interrupted();
  };
  try {
    aten::Phases<T, OnThreads<T>>(options, false, false, after_step).run(call);
  } catch (const Interrupted&) {
    return true;
  }
  return false;
}

template bool run_by_aten(const RelaxCall<float>&, const at::TensorOptions&);
template bool run_by_aten(const EpCall<float>&, const at::TensorOptions&);
template bool run_by_aten(const CepCall<float>&, const at::TensorOptions&);
template bool run_by_aten(const RelaxCall<double>&, const at::TensorOptions&);
template bool run_by_aten(const EpCall<double>&, const at::TensorOptions&);
template bool run_by_aten(const CepCall<double>&, const at::TensorOptions&);

}  // namespace ceprop::cpu
