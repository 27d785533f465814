// What decides between ways to build the kernels, measured on a GPU with clusters of 16 blocks: README.md beside this.
//
//   micro TABLE PART...   appends lines "name,value,unit" to the file
//
// Parts: clocks, clusters, barriers, mailboxes, l2, prototype. Each is better run alone, as an error of a kernel ends
// the program. build_micro.sh compiles it.
#include <array>
#include <cmath>
#include <cstring>

#include "exchange_costs.cuh"
#include "expected.h"
#include "relax_cluster.cuh"
#include "timing.cuh"

namespace micro {
namespace {

#ifdef EXACT_SIGMOID
constexpr const char* variant = "-exact-sigmoid";
#else
constexpr const char* variant = "";
#endif
constexpr int width = 512, outputs = 10, chunks = width / 128;
constexpr double rounding = 3e-6;  // a state's error that ten steps in float32 may leave

template <int Samples>
Shape shape_of(int batch, int groups) {
  const int of_cluster = groups * Samples, clusters = (batch + of_cluster - 1) / of_cluster;
  return {clusters * cluster_blocks, prototype::threads, cluster_blocks, false,
          size_t(prototype::shared_bytes(width, Samples, groups))};
}

void measure_clusters(const Table& table, int) {
  const auto most = [](auto kernel, Shape shape, int blocks) {
    shape.cluster = blocks;
    shape.blocks = 8 * cluster_blocks;
    return most_clusters(kernel, shape);
  };
  const auto small = prototype::relax<chunks, 3, cluster_blocks>;
  const auto large = prototype::relax<chunks, 4, cluster_blocks>;
  table.add("clusters-of-16", most(small, shape_of<3>(3, 1), 16), "");
  table.add("clusters-of-16-of-4-groups", most(large, shape_of<4>(16, 4), 16), "");
  table.add("clusters-of-8", most(small, shape_of<3>(3, 1), 8), "");
}

class OnDevice {
 public:
  explicit OnDevice(const std::vector<float>& from) : count_(from.size()), array_(device_array<float>(count_)) {
    must(cudaMemcpy(array_, from.data(), bytes(), cudaMemcpyHostToDevice), "copy");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(array_); }
  float* get() const { return array_; }
  std::vector<float> values() const {
    std::vector<float> to(count_);
    must(cudaMemcpy(to.data(), array_, bytes(), cudaMemcpyDeviceToHost), "relax");
    return to;
  }

 private:
  size_t bytes() const { return count_ * sizeof(float); }
  size_t count_;
  float* array_;
};

// Whether it is right. A step takes as long whatever the states are.
template <int Samples>
bool measure_relax(const Table& table, int batch, int groups) {
  const prototype::Network net = prototype::random_network(width, outputs, batch, 1);
  const OnDevice between(net.between), above(net.above), drive(net.drive), bias1(net.bias1), bias2(net.bias2),
      target(net.target);
  const std::vector<float> unwritten(size_t(batch) * width, NAN), unwritten_outputs(size_t(batch) * outputs, NAN);
  const OnDevice states[2][3] = {{OnDevice(unwritten), OnDevice(unwritten), OnDevice(unwritten_outputs)},
                                 {OnDevice(unwritten), OnDevice(unwritten), OnDevice(unwritten_outputs)}};
  prototype::Problem p{batch, width, outputs, groups, 0, 0, net.beta};
  p.between = between.get();
  p.above = above.get();
  p.drive = drive.get();
  p.bias1 = bias1.get();
  p.bias2 = bias2.get();
  p.target = target.get();
  for (int phase = 0; phase < 2; ++phase)
    for (int layer = 0; layer < 3; ++layer) p.states[phase][layer] = states[phase][layer].get();
  const auto run = [&](int free_steps, int nudged_steps) {
    p.free_steps = free_steps;
    p.nudged_steps = nudged_steps;
    must(launch(prototype::relax<chunks, Samples, cluster_blocks>, shape_of<Samples>(batch, groups), p), "relax");
  };

  constexpr int free_steps = 6, nudged_steps = 4;
  run(free_steps, nudged_steps);
  std::array<std::array<std::vector<float>, 3>, 2> got;
  for (int phase = 0; phase < 2; ++phase)
    for (int layer = 0; layer < 3; ++layer) got[phase][layer] = states[phase][layer].values();
  const double error = prototype::worst_error(net, free_steps, nudged_steps, got, 20);
  const std::string name =
      "b" + std::to_string(batch) + "-" + std::to_string(groups) + "x" + std::to_string(Samples) + variant;
  table.add("error-" + name, error, "");
  table.add("step-" + name, microseconds_a_round([&](int steps) { run(steps, 1); }, 20, 220), "us");
  if (error < rounding) return true;
  std::printf("relax, %s: wrong, a state is off by %g\n", name.c_str(), error);
  return false;
}

bool measure_prototype(const Table& table) {
  bool right = measure_relax<3>(table, 20, 1);
  right &= measure_relax<4>(table, 20, 1);
  right &= measure_relax<3>(table, 3, 1);
  right &= measure_relax<4>(table, 64, 2);  // 8 clusters, which may be one more than fit
  right &= measure_relax<4>(table, 56, 2);  // 7, as in all that follow
  right &= measure_relax<3>(table, 63, 3);
  right &= measure_relax<4>(table, 112, 4);
  return right;
}

int run(const char* file, int parts, char** names) {
  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0), "device");
  if (device.major != 9) {
    std::printf("%s has no clusters of 16 blocks\n", device.name);
    return 1;
  }
  const struct {
    const char* name;
    void (*measure)(const Table&, int multiprocessors);
  } costs[] = {{"clocks", measure_clocks},
               {"clusters", measure_clusters},
               {"barriers", measure_barriers},
               {"mailboxes", measure_mailboxes},
               {"l2", measure_l2}};
  const Table table(file);
  bool right = true;
  for (int i = 0; i < parts; ++i) {
    for (const auto& cost : costs)
      if (!std::strcmp(names[i], cost.name)) cost.measure(table, device.multiProcessorCount);
    if (!std::strcmp(names[i], "prototype")) right &= measure_prototype(table);
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace micro

int main(int count, char** words) {
  if (count > 2) return micro::run(words[1], count - 2, words + 2);
  std::printf("micro TABLE clocks|clusters|barriers|mailboxes|l2|prototype ...\n");
  return 2;
}
