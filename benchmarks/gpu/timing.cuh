// Launches, times by differences, and the table that they go to.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "device.h"

namespace micro {

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Lines "name,value,unit", each on disk as soon as it is known.
class Table {
 public:
  explicit Table(const char* file) : file_(std::fopen(file, "a")) {
    if (file_) return;
    std::perror(file);
    std::exit(1);
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table() { std::fclose(file_); }
  void add(const std::string& name, double value, const char* unit) const {
    for (std::FILE* to : {file_, stdout}) {
      std::fprintf(to, "%s,%.5g,%s\n", name.c_str(), value, unit);
      std::fflush(to);
    }
  }

 private:
  std::FILE* file_;
};

struct Shape {
  int blocks, threads;
  int cluster = 1;
  bool cooperative = false;
  size_t shared_bytes = 0;
};

// With the launch's attributes in `attributes`, which must outlive it.
inline cudaLaunchConfig_t configuration(const Shape& shape, cudaLaunchAttribute (&attributes)[2]) {
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(shape.blocks);
  config.blockDim = unsigned(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {unsigned(shape.cluster), 1, 1};
  }
  if (shape.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  return config;
}

template <class Kernel>
void prepare(Kernel kernel, const Shape& shape) {
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes)), "memory");
  if (shape.cluster > 8) must(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "size");
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, Arguments... arguments) {
  prepare(kernel, shape);
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(shape, attributes);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// As many clusters as run at the same time.
template <class Kernel>
int most_clusters(Kernel kernel, const Shape& shape) {
  prepare(kernel, shape);
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(shape, attributes);
  int most = 0;
  must(cudaOccupancyMaxActiveClusters(&most, kernel, &config), "clusters");
  return most;
}

// Of a call, the median of some.
template <class Call>
double microseconds(const Call& call) {
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  std::vector<float> times;
  constexpr int warm = 3, counted = 9;
  for (int i = 0; i < warm + counted; ++i) {
    must(cudaEventRecord(begin), "event");
    call();
    must(cudaEventRecord(end), "event");
    must(cudaEventSynchronize(end), "kernel");
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (i >= warm) times.push_back(1e3f * milliseconds);
  }
  must(cudaEventDestroy(begin), "event");
  must(cudaEventDestroy(end), "event");
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Of one round, by the difference between few and many of them in a launch: run(rounds).
template <class Run>
double microseconds_a_round(const Run& run, int few = 100, int many = 2100) {
  const double of_many = microseconds([&] { run(many); }), of_few = microseconds([&] { run(few); });
  return (of_many - of_few) / (many - few);
}

}  // namespace micro
