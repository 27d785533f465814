#pragma once

#include <string>

namespace ceprop {

// The toolkit and the architectures that the device code was compiled for, e.g. "13.0, sm_75 sm_90".
std::string cuda_build_facts();

}  // namespace ceprop
