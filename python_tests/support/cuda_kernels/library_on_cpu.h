// The steps that call torch's operators, on the CPU: between a program of emulated kernels and one of torch, whose
// headers do not mix.
#pragma once

#include "../../../csrc/aten/pointwise.h"
#include "../../../csrc/aten/whole_phase.h"

namespace ceprop {

// Runs one call with torch's operators for the CPU.
template <class T, class Call>
void run_on_cpu(const Call& call, bool tf32, bool takes_whole_phases);

// The kernels that it calls, under the emulation.
template <class T>
struct EmulatedKernels {
  static constexpr bool gains_by_batches = true, takes_whole_phases = true;
  static void pool(const aten::Pooling<T>& given);
  static void show(const aten::Showing<T>& given);
  static void move(const aten::Move<T>& given);
  static void relax(const aten::WholePhase<T>& given);
};

}  // namespace ceprop
