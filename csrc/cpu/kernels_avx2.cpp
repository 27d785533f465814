#include "kernels_prelude.h"

#ifdef CEPROP_X86_KERNELS
#pragma GCC target("avx2,fma")
#define CEPROP_SET avx2
#define CEPROP_VECTOR_BYTES 32
#include "kernels_impl.h"

const ceprop::Kernels ceprop::avx2_kernels = {"avx2", ceprop::avx2::kernels_of<float>,
                                              ceprop::avx2::kernels_of<double>};
#endif
