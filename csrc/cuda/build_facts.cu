#include "build_facts.h"

namespace ceprop {

std::string cuda_build_facts() {
  std::string facts = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + ",";
  for (const int architecture : {__CUDA_ARCH_LIST__}) facts += " sm_" + std::to_string(architecture / 10);
  return facts;
}

}  // namespace ceprop
