// A call on a network of any shape, by torch's operators with kernels of this folder around them.
#pragma once

#include <ATen/ATen.h>

#include "../../model/network.h"

namespace ceprop::cpu {

// `options`: of the call's tensors. Returns whether it was interrupted; see Stop.
template <class Call>
bool run_by_aten(const Call& call, const at::TensorOptions& options);

}  // namespace ceprop::cpu
