#include "threads.h"

#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace ceprop {

namespace {

bool forked = false;

// Returns how many CPUs a control group gives at a time. Its files say "max 100000" or "150000 100000" in cpu.max, or a
// quota below 0 for none.
double quota_of(const std::string& folder) {
  std::ifstream v2(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max") return std::atof(quota.c_str()) / period;
  std::ifstream v1(folder + "/cpu.cfs_quota_us"), of_period(folder + "/cpu.cfs_period_us");
  double allowed = 0;
  if (v1 >> allowed && of_period >> period && allowed > 0) return allowed / period;
  return std::numeric_limits<double>::infinity();
}

// Returns the least quota of this process's groups and those around them.
double quota() {
  double least = std::numeric_limits<double>::infinity();
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t path = line.rfind(':');
    if (path == std::string::npos) continue;
    const bool is_v1 = line.find(":cpu") != std::string::npos, is_v2 = line.rfind("0::", 0) == 0;
    if (!is_v1 && !is_v2) continue;
    const std::string root = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string group = line.substr(path + 1);; group.resize(group.rfind('/'))) {
      least = std::min(least, quota_of(root + group));
      if (group.empty() || group.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

#ifdef __linux__
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

int allowed_threads() {
  static const double at_once = quota();  // rounded up: a part of a CPU takes a thread
  static const int of_machine = static_cast<int>(std::thread::hardware_concurrency());  // takes several microseconds
  int cpus = of_machine;
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cpus = CPU_COUNT(&mask);
#endif
  return static_cast<int>(std::clamp(std::ceil(at_once), 1.0, static_cast<double>(std::max(cpus, 1))));
}

bool was_forked() { return forked; }

bool oversubscribes() {
  const char* given = std::getenv("CEPROP_CPU_OVERSUBSCRIBE");
  return given != nullptr && std::string(given) == "1";
}

}  // namespace ceprop
