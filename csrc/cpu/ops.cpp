// The ops on CPU tensors.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../ops.h"
#include "kernels.h"

namespace ceprop {
namespace {

const Kernels& kernels() {
  try {
    return chosen_kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

class Cpu {
 public:
  Cpu(const Tensor&, Precision precision) : set_(kernels()) {
    TORCH_CHECK_VALUE(precision == Precision::exact, "precision must be 'exact' on the CPU: the others are CUDA's");
  }

  Tensor new_steps(int64_t phases) const { return at::empty({phases}, at::kLong); }

  Tensor one_hot(const Tensor& target, const Tensor& x, int64_t classes) const {
    Tensor result = at::zeros({x.size(0), classes}, x.options());
    const auto index = target.accessor<int64_t, 1>();
    for (int64_t sample = 0; sample < x.size(0); ++sample) {
      TORCH_CHECK_VALUE(index[sample] >= 0 && index[sample] < classes, "target must hold class indices in 0 .. ",
                        classes - 1, ", got ", index[sample], " at ", sample);
      result[sample][index[sample]] = 1;
    }
    return result;
  }

  template <class T>
  void run(const RelaxCall<T>& call) const {
    set_.of<T>().relax(call, at::get_num_threads());
  }
  template <class T>
  void run(const EpCall<T>& call) const {
    set_.of<T>().ep_step(call, at::get_num_threads());
  }
  template <class T>
  void run(const CepCall<T>& call) const {
    set_.of<T>().cep_step(call, at::get_num_threads());
  }

 private:
  const Kernels& set_;
};

}  // namespace
}  // namespace ceprop

TORCH_LIBRARY_IMPL(ceprop_cuda, CPU, m) {
  m.impl("relax", &ceprop::relax_op<ceprop::Cpu>);
  m.impl("ep_step", &ceprop::ep_step_op<ceprop::Cpu>);
  m.impl("cep_step", &ceprop::cep_step_op<ceprop::Cpu>);
}
