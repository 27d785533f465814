// When a phase may end before its steps: the workers agree on whether any unit still moves.
#pragma once

#include <algorithm>
#include <vector>

#include "../model/network.h"
#include "set.h"
#include "team.h"

namespace ceprop::CEPROP_SET {

template <class T>
class Settling {
 public:
  explicit Settling(int workers) : flags_(2 * workers) {}

  // Whether a phase ends after `count` steps; stays(limit) says whether this worker's units have stayed in the last
  // one. With a tolerance every worker has to ask after every step.
  template <class Stays>
  bool may_stop(const Worker& worker, const Stop& stop, int count, const Stays& stays) {
    if (!stop.tolerance || count % steps_per_check != 0) return false;
    // A worker has two flags, which it sets in turn: a fast worker may set the next before a slow one has read this.
    Flag* flags = flags_.data() + count / steps_per_check % 2 * worker.count;
    flags[worker.index].value = stays(limit_of<T>(*stop.tolerance));
    worker.wait();
    return std::all_of(flags, flags + worker.count, [](const Flag& flag) { return flag.value; });
  }

 private:
  // These are aligned, so that workers do not write to the same line.
  struct alignas(64) Flag {
    bool value;
  };

  std::vector<Flag> flags_;
};

}  // namespace ceprop::CEPROP_SET
