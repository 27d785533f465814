// A call on a network that does not run in one launch: a library's convolutions and products with the kernels of this
// folder around them.
#pragma once

#include <ATen/ATen.h>

#include "../../model/network.h"

namespace ceprop::cuda {

// Enqueues a call on the current stream. `options`: of its tensors, on the current device. With `tf32` the
// convolutions' operands are rounded.
//
// Without a tolerance all phases are one CUDA graph: captured when a call comes for the second time with the same
// parameters' memory and the same settings, and replayed from then on. With one the host waits for the device after
// every few steps, which a stream that is being captured cannot.
//
// With `takes_whole_phases` clusters take the phases where weights rest, of a network for which maps_for() has a plan.
template <class Call>
void run_by_aten(const Call& call, const at::TensorOptions& options, bool tf32, bool takes_whole_phases);

}  // namespace ceprop::cuda
