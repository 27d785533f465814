#include "devices.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <vector>

#include "../arguments/checks.h"
#include "kernels.h"
#include "teams/kernels.h"

namespace ceprop::cuda {

namespace {

// Asks a device once.
template <class Read>
Device known_of(std::map<int, Device>& known, std::mutex& mutex, int index, const Read& read) {
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
  return known[index] = read();
}

}  // namespace

Device properties_of(int index) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  return known_of(known, mutex, index, [] {
    Device device;
    C10_CUDA_CHECK(read_device(device));
    return device;
  });
}

Device properties_with_clusters_of(int index) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  return known_of(known, mutex, index, [&] {
    Device device = properties_of(index);
    C10_CUDA_CHECK(teams::read_clusters(device));
    return device;
  });
}

namespace {

// What a plan depends on, as numbers.
using Key = std::vector<int64_t>;

// Holds plans by what they depend on.
template <class Planned>
class Known {
 public:
  template <class Plan>
  Planned get(const Key& key, const Plan& plan) {
    const std::lock_guard lock(mutex_);
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
    if (plans_.size() == most_) plans_.clear();
    return plans_.emplace(key, plan()).first->second;
  }

 private:
  static constexpr size_t most_ = 256;  // shapes; a program uses a few
  std::mutex mutex_;
  std::map<Key, Planned> plans_;
};

// Returns the numbers that all plans depend on. `network` is a chain of dense layers: the number of its turns says
// which they are.
Key key_of(int index, const NetworkShape& network) {
  Key key{index, network.turn_count(), network.has_readout(), network.input.units()};
  for (int c = 0; c < network.connection_count(); ++c) key.push_back(network.units_above(c));
  return key;
}

}  // namespace

Planned plan_for(int index, const Shape& shape, Precision precision) {
  static Known<Planned> known;
  const Device device = properties_of(index);
  Key key = key_of(index, shape.network);
  key.insert(key.end(), {static_cast<int64_t>(precision), shape.energy, shape.batch, shape.number_bytes, shape.matrices,
                         shape.moving});
  return known.get(key, [&] { return plan_launch(device, shape, precision); });
}

teams::Planned plan_team_for(int index, const Shape& shape) {
  static Known<teams::Planned> known;
  const Device device = properties_with_clusters_of(index);
  Key key = key_of(index, shape.network);
  key.insert(key.end(), {shape.batch, shape.number_bytes});
  return known.get(key, [&] { return teams::plan_team(device, shape); });
}

}  // namespace ceprop::cuda
