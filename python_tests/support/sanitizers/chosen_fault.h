// Which of the faults is there that a test has written into a copy of the kernels: the one that FAULT numbers, or none.
// Known before main begins, so that asking orders no threads.
#pragma once

#include <cstdlib>

inline const int chosen_fault = std::atoi(std::getenv("FAULT"));
