#include "devices.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <tuple>

#include "../arguments/checks.h"
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

namespace {

// Plans by what they depend on.
template <class Key, class Planned>
class Known {
 public:
  template <class Make>
  Planned get(const Key& key, const Make& make) {
    const std::lock_guard lock(mutex_);
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
    if (plans_.size() == most_) plans_.clear();
    return plans_.emplace(key, make()).first->second;
  }

 private:
  static constexpr size_t most_ = 256;  // shapes; a program uses a few
  std::mutex mutex_;
  std::map<Key, Planned> plans_;
};

}  // namespace

Planned plan_for(int index, const Shape& shape, Precision precision, Engine) {
  using Key = std::tuple<int, Precision, std::vector<int64_t>, bool, bool, bool, int64_t, int64_t, int, int64_t>;
  static Known<Key, Planned> known;
  const Device device = properties_of(index);
  const Key key{index,       precision,          shape.widths,   shape.readout, shape.energy, shape.asynchronous,
                shape.batch, shape.number_bytes, shape.matrices, shape.moving};
  return known.get(key, [&] { return plan_launch(device, shape, precision); });
}

conv::Planned plan_for(int index, const conv::Shape& shape, Precision precision, Engine engine) {
  static Known<std::vector<int64_t>, conv::Planned> known;
  const Device device = properties_of(index);
  std::vector<int64_t> key{index,
                           static_cast<int64_t>(precision),
                           static_cast<int64_t>(engine),
                           shape.readout,
                           shape.free_feedback,
                           shape.energy,
                           shape.asynchronous,
                           shape.batch,
                           shape.number_bytes};
  for (const MapShape& map : shape.maps) key.insert(key.end(), {map.channels, map.height, map.width});
  for (const Convolution& made : shape.convolutions) {
    for (const auto& pair : {made.kernel, made.stride, made.padding, made.window})
      key.insert(key.end(), pair.begin(), pair.end());
    key.push_back(static_cast<int64_t>(made.pool));
  }
  return known.get(key, [&] { return conv::plan_launch(device, shape, precision, engine); });
}

}  // namespace ceprop::cuda
