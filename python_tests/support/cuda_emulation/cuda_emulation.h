// For tests only: lets g++ compile CUDA kernels, which then run without a GPU. To be given with -include, so that it
// comes before everything else; see README.md.
#pragma once

#include <math.h>  // not <cmath>: brings fma, ldexp, ... of float into the global namespace, as CUDA does

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#define CUDA_EMULATION 1
#ifndef CUDA_EMULATION_ARCH
#define CUDA_EMULATION_ARCH 900  // 800: no clusters
#endif
#define __CUDA_ARCH__ CUDA_EMULATION_ARCH

// Every group needs those above it.
#include "device/language.h"
#include "interface.h"

#include "device/arithmetic.h"
#include "device/memory_access.h"
#include "device/threads.h"
#include "device_array.h"

#include "device/groups.h"
