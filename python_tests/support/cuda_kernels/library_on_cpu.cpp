#include "library_on_cpu.h"

#include "../../../csrc/aten/phases.h"

namespace ceprop {

template <class T, class Call>
void run_on_cpu(const Call& call, bool tf32) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  aten::Phases<T, EmulatedKernels<T>>(options, tf32).run(call);
}

template void run_on_cpu<float>(const RelaxCall<float>&, bool);
template void run_on_cpu<float>(const EpCall<float>&, bool);
template void run_on_cpu<float>(const CepCall<float>&, bool);
template void run_on_cpu<double>(const RelaxCall<double>&, bool);
template void run_on_cpu<double>(const EpCall<double>&, bool);
template void run_on_cpu<double>(const CepCall<double>&, bool);

}  // namespace ceprop
