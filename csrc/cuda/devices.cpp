#include "devices.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <tuple>

#include "kernels.h"

namespace ceprop::cuda {

Device properties_of(int index) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
  Device device;
  C10_CUDA_CHECK(read_device(device));
  return known[index] = device;
}

Planned plan_for(int index, const Shape& shape, Precision precision) {
  using Key = std::tuple<int, Precision, std::vector<int64_t>, bool, bool, bool, int64_t, int64_t, int>;
  constexpr size_t most_known = 256;  // shapes; a program uses a few
  static std::mutex mutex;
  static std::map<Key, Planned> known;
  const Device device = properties_of(index);
  const Key key{index,       precision,          shape.widths,  shape.readout, shape.energy, shape.asynchronous,
                shape.batch, shape.number_bytes, shape.matrices};
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() == most_known) known.clear();
  return known.emplace(key, plan_launch(device, shape, precision)).first->second;
}

}  // namespace ceprop::cuda
