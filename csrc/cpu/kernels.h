// How the ops call the kernels of one instruction set, and how a set is chosen. No torch.
#pragma once

#include <string>
#include <vector>

#include "../model/batches.h"
#include "../model/network.h"

namespace ceprop {

// From how many batches a call has learned, and whether it was interrupted; see Batches.
struct Learned {
  int64_t batches;
  bool interrupted;
};

// Each kernel of one batch returns whether it was interrupted; see Stop.
template <class T>
struct KernelsOf {
  bool (*relax)(const RelaxCall<T>&, int threads);
  bool (*ep_step)(const EpCall<T>&, int threads);
  bool (*cep_step)(const CepCall<T>&, int threads);
  Learned (*learn_continually)(CepCall<T>&, const DataSet<T>&, const Batches&, int threads);
  Learned (*descend)(DescentCall<T>&, const DataSet<T>&, const Batches&, int threads);
};

struct Kernels {
  const char* name;
  KernelsOf<float> of_float;
  KernelsOf<double> of_double;

  template <class T>
  const KernelsOf<T>& of() const;
};
template <>
inline const KernelsOf<float>& Kernels::of<float>() const {
  return of_float;
}
template <>
inline const KernelsOf<double>& Kernels::of<double>() const {
  return of_double;
}

extern const Kernels default_kernels;  // plain C++, 16-byte vectors
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CEPROP_X86_KERNELS
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// Returns the widest set that this machine runs, or the one that the environment variable CEPROP_CPU_CAPABILITY names
// ("default", "avx2", "avx512"), which it reads at every call. Throws std::invalid_argument if that names no set or one
// that cannot run here.
const Kernels& chosen_kernels();

// Returns the names of all sets that this machine runs, the widest last.
std::vector<std::string> runnable_kernels();

}  // namespace ceprop
