#include "devices.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <vector>

#include "../aten/call_arrays.h"
#include "teams/kernels.h"

namespace ceprop::cuda {

namespace {

// Holds what is worked out once, by what it depends on.
template <class Key, class Value>
class Known {
 public:
  template <class Find>
  Value get(const Key& key, const Find& find) {
    const std::lock_guard lock(mutex_);
    if (const auto found = values_.find(key); found != values_.end()) return found->second;
    if (values_.size() == most_) values_.clear();
    return values_.emplace(key, find()).first->second;
  }

 private:
  static constexpr size_t most_ = 256;  // shapes; a program uses a few
  std::mutex mutex_;
  std::map<Key, Value> values_;
};

}  // namespace

Device properties_of(int index) {
  static Known<int, Device> known;
  return known.get(index, [&] {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
    Device device;
    C10_CUDA_CHECK(teams::read_device(device));
    return device;
  });
}

teams::Planned plan_for(int index, const teams::Shape& shape) {
  static Known<std::vector<int64_t>, teams::Planned> known;
  const NetworkShape& network = shape.network;
  // It is a chain of dense layers: the number of its turns says which they are.
  std::vector<int64_t> key{index,           network.turn_count(), shape.batch,     shape.number_bytes,
                           shape.continual, shape.gathers,        shape.tolerance, network.input.units()};
  for (int c = 0; c < network.connection_count(); ++c) key.push_back(network.units_above(c));
  return known.get(key, [&] { return teams::plan_team(properties_of(index), shape); });
}

maps::Planned maps_for(int index, const NetworkShape& network, int64_t samples, int number_bytes) {
  static Known<aten::Key, maps::Planned> known;
  aten::Key key;
  key.add(index, samples, number_bytes, network);
  return known.get(key, [&] { return maps::plan_maps(properties_of(index), network, samples, number_bytes); });
}

}  // namespace ceprop::cuda
