#include "kernels_prelude.h"

#ifdef CEPROP_X86_KERNELS
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define CEPROP_SET avx512
#define CEPROP_VECTOR_BYTES 64
#include "kernels_impl.h"

const ceprop::Kernels ceprop::avx512_kernels = {"avx512", ceprop::avx512::kernels_of<float>,
                                                ceprop::avx512::kernels_of<double>};
#endif
