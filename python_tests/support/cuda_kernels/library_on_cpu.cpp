#include "library_on_cpu.h"

#include "../../../csrc/aten/phases.h"

namespace ceprop {

template <class T, class Call>
void run_on_cpu(const Call& call, bool tf32, bool takes_whole_phases) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  aten::Phases<T, EmulatedKernels<T>>(options, tf32, takes_whole_phases).run(call);
}

template void run_on_cpu<float>(const RelaxCall<float>&, bool, bool);
template void run_on_cpu<float>(const EpCall<float>&, bool, bool);
template void run_on_cpu<float>(const CepCall<float>&, bool, bool);
template void run_on_cpu<double>(const RelaxCall<double>&, bool, bool);
template void run_on_cpu<double>(const EpCall<double>&, bool, bool);
template void run_on_cpu<double>(const CepCall<double>&, bool, bool);

}  // namespace ceprop
