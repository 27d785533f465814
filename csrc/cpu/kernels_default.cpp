#include "kernels_prelude.h"

#define CEPROP_SET portable
#define CEPROP_VECTOR_BYTES 16
#include "kernels_impl.h"

const ceprop::Kernels ceprop::default_kernels = {"default", ceprop::portable::kernels_of<float>,
                                                 ceprop::portable::kernels_of<double>};
