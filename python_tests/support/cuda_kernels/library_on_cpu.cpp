#include "library_on_cpu.h"

#include "../../../csrc/aten/phases.h"

namespace ceprop {

template <class T, class Call>
void run_on_cpu(const Call& call) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  aten::Phases<T, EmulatedKernels<T>>(options, false).run(call);
}

template void run_on_cpu<float>(const RelaxCall<float>&);
template void run_on_cpu<float>(const EpCall<float>&);
template void run_on_cpu<float>(const CepCall<float>&);
template void run_on_cpu<double>(const RelaxCall<double>&);
template void run_on_cpu<double>(const EpCall<double>&);
template void run_on_cpu<double>(const CepCall<double>&);

}  // namespace ceprop
