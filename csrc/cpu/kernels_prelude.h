// Includes what the kernels need from outside. A source file includes it before it turns on its instruction set, so
// that library code shared with the rest of the program is compiled for every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "../model/largest.h"
#include "../model/unit_math.h"
#include "kernels.h"
#include "memory.h"
#include "team.h"
