// What launches are planned by. No torch, no CUDA.
#pragma once

#include <cstdint>

namespace ceprop::cuda {

// Plans depend on these of a device's properties.
struct Device {
  int multiprocessors;
  int64_t shared_bytes;  // most that one block may have
  int cluster_blocks;    // most of a cluster that has that much shared memory each; 0: no clusters
  int clusters;          // of so many blocks, that run at once
};

}  // namespace ceprop::cuda
