// A test writes faults into a copy of the kernels, and FAULT numbers the one that is there; -1 is none. The number is
// known before main begins, so that asking for it orders no threads.
#pragma once

#include <cstdlib>

inline const int chosen_fault = std::atoi(std::getenv("FAULT"));
