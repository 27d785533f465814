#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace ceprop {

namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> sets{&default_kernels};
#ifdef CEPROP_X86_KERNELS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) sets.push_back(&avx2_kernels);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    sets.push_back(&avx512_kernels);
#endif
  return sets;
}

}  // namespace

const Kernels& chosen_kernels() {
  static const std::vector<const Kernels*> sets = runnable();
  const char* wanted = std::getenv("CEPROP_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return *sets.back();
  std::string names;
  for (const Kernels* set : sets) {
    if (set->name == std::string(wanted)) return *set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("CEPROP_CPU_CAPABILITY must be one of " + names + " on this machine, got " + wanted);
}

std::vector<std::string> runnable_kernels() {
  std::vector<std::string> names;
  for (const Kernels* set : runnable()) names.emplace_back(set->name);
  return names;
}

}  // namespace ceprop
