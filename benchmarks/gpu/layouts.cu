// What a step takes by each way to lay a network out, not only by the one that the planner chooses. It is measured by
// differences, with the library's own kernels on networks of random weights.
//
//   layouts TABLE [PART]  appends lines "name,value,unit" to the file, of layouts whose name contains PART
//
// A name is free/NETWORK-bBATCH/TEAM for a free step, nudged/... for a nudged one of C-EP, once/... and "once of
// EP"/... for a launch of one step a phase. TEAM says as in "cluster-16x3-7-1-1" a team's blocks, the samples of a
// group, teams, groups and rounds; as in "moving-grid-112-10-warps" the team that moves weights, its blocks and the
// warps; as in "maps-4" the blocks of a cluster for maps. build_micro.sh compiles it.
#include <random>
#include <set>

#include "../../csrc/cuda/maps/kernels.h"
#include "../../csrc/cuda/teams/kernels.h"
#include "../../csrc/cuda/teams/problem_of.h"
#include "../../csrc/model/chain.h"
#include "timing.cuh"

namespace micro {
namespace {

using namespace ceprop;
using namespace ceprop::cuda;
using namespace ceprop::cuda::teams;

constexpr const char* names[] = {"block", "cluster", "grid"};

// Numbers between -size and size, on the device until the program ends.
float* random_numbers(int64_t count, float size) {
  static std::mt19937 engine(1);
  std::uniform_real_distribution<float> any(-size, size);
  std::vector<float> from(static_cast<size_t>(count));
  for (float& number : from) number = any(engine);
  float* to;
  must(cudaMalloc(&to, from.size() * sizeof(float)), "memory");
  must(cudaMemcpy(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice), "copy");
  return to;
}

// A call on a chain of dense layers of so many units, of which no number of steps is set.
CepCall<float> call_of(const std::vector<int64_t>& units, int64_t batch) {
  std::vector<MapShape> maps;
  for (const int64_t n : units) maps.push_back({n, 1, 1});
  CepCall<float> call;
  call.network.shape = chain_of(maps, {}, false, false, false);
  const int layers = call.network.shape.layer_count();
  call.network.input_activation = Activation::sigmoid;
  call.network.free_feedback = false;
  for (int l = 0; l < layers; ++l) {
    call.network.rules.push_back({Activation::sigmoid, Dynamics::prototypical, l + 1 < layers, false, 1});
    call.network.weights.push_back(random_numbers(units[l] * units[l + 1], 1 / std::sqrt(float(units[l]))));
    call.network.biases.push_back(random_numbers(units[l + 1], 0.1f));
    call.free_states.push_back(random_numbers(batch * units[l + 1], 1));
    call.lr.push_back(1e-4);
  }
  for (int l = 0; l < layers; ++l) call.nudged_states.push_back(random_numbers(batch * units[l + 1], 1));
  call.batch = {batch, random_numbers(batch * units[0], 1), random_numbers(batch * units.back(), 1)};
  call.nudge = {0.1, NudgeAt::state, Loss::mse};
  call.stop.steps_used = reinterpret_cast<int64_t*>(random_numbers(2 * Stages::most, 1));
  call.symmetric = call.shared_update = false;
  call.weight_decay = 0;
  call.forms = {Form::literal, Form::literal};
  return call;
}
RelaxCall<float> relaxing(const CepCall<float>& call) {
  return {call.network, {call.batch.size, call.batch.x, nullptr}, call.nudge, 0, call.stop, {}, call.free_states};
}

// The kernel's argument for a call in the place of an earlier one's; the numbers of steps do not change a plan.
template <class Call>
void run(const Call& call, const Plan& plan, void* workspace) {
  must(launch(plan, problem_of(call, plan, workspace), nullptr), "launch");
}

struct Layouts {
  const Table& table;
  const std::string wanted;
  std::set<std::string>& done;  // as fewer blocks may be all that have work
  const Device& device;
  std::string network;
  CepCall<float> call;
  std::vector<float*> gradients{}, bias_gradients{};

  std::string name_of(const Plan& plan, TeamKind kind, int samples) const {
    const auto all = [](auto... numbers) { return ((std::to_string(numbers) + "-") + ...); };
    std::string name = network + "-b" + std::to_string(call.batch.size) + "/";
    if (plan.moving.continual)
      return name + "moving-" + names[static_cast<int>(plan.moving.kind)] + "-" + all(plan.moving.blocks) +
             std::to_string(plan.warps) + "-warps";
    return name + names[static_cast<int>(kind)] + "-" + std::to_string(plan.layout.blocks) + "x" +
           std::to_string(samples) + "-" + all(plan.layout.teams, plan.layout.groups) +
           std::to_string(plan.layout.rounds);
  }

  // A team of so many blocks at most, in a launch of at most `all`.
  void measure(TeamKind kind, int blocks, int samples, int all, bool continual) const {
    Device part = device;
    part.multiprocessors = std::min(all, device.multiprocessors);
    part.cluster_blocks = blocks;
    if (kind == TeamKind::cluster && blocks != device.cluster_blocks) part.clusters = all / blocks;
    RelaxCall<float> relax = relaxing(call);
    CepCall<float> cep = call;
    const auto plan = planning::try_plan(part, continual ? shape_of(cep) : shape_of(relax), kind, blocks, samples,
                                         kind == TeamKind::grid);
    if (!plan) return;
    const std::string name = name_of(*plan, kind, samples);
    if (name.find(wanted) == std::string::npos || !done.insert(name).second) return;
    void* workspace;
    must(cudaMalloc(&workspace, static_cast<size_t>(plan->workspace_bytes)), "memory");
    if (continual) {
      cep.free_steps = 1;
      const auto steps = [&](int count) {
        cep.nudged_steps = count;
        run(cep, *plan, workspace);
      };
      table.add("nudged/" + name, microseconds_a_round(steps, 2, 22), "us");
      table.add("once/" + name, microseconds([&] { steps(1); }), "us");
    } else {
      const auto steps = [&](int count) {
        relax.steps = count;
        run(relax, *plan, workspace);
      };
      table.add("free/" + name, microseconds_a_round(steps, 10, 110), "us");
      table.add("once/" + name, microseconds([&] { steps(1); }), "us");
      if (plan->layout.rounds == 1) {
        EpCall<float> ep{call};
        ep.free_steps = ep.nudged_steps = 1;
        ep.accumulate = false;
        ep.gradients = gradients;
        ep.bias_gradients = bias_gradients;
        table.add("once of EP/" + name, microseconds([&] { run(ep, *plan, workspace); }), "us");
      }
    }
    must(cudaFree(workspace), "memory");
  }
};

void measure_layouts(const Table& table, const std::string& wanted) {
  Device device;
  must(read_device(device), "device");
  table.add("layouts-clusters-of-" + std::to_string(device.cluster_blocks), device.clusters, "");
  const struct {
    const char* name;
    std::vector<int64_t> units;
    std::vector<int> batches;
  } networks[] = {{"1h", {784, 512, 10}, {20}},
                  {"1h-of-few-inputs", {32, 512, 10}, {20}},
                  {"2h", {784, 512, 512, 10}, {20, 64, 256}},
                  {"3h", {784, 512, 512, 512, 10}, {20}}};
  const auto groups = samples_of_groups(sizeof(float));
  std::set<std::string> done;
  for (const auto& [name, units, batches] : networks)
    for (const int batch : batches) {
      Layouts layouts{table, wanted, done, device, name, call_of(units, batch)};
      for (size_t l = 0; l + 1 < units.size(); ++l) {
        layouts.gradients.push_back(random_numbers(units[l] * units[l + 1], 1));
        layouts.bias_gradients.push_back(random_numbers(units[l + 1], 1));
      }
      for (const int samples : groups) layouts.measure(TeamKind::block, 1, samples, 132, false);
      for (const int blocks : {2, 4, 8, 16})
        for (const int samples : groups) layouts.measure(TeamKind::cluster, blocks, samples, 112, false);
      for (const int blocks : {132, 128, 112, 96, 66, 48, 33})
        layouts.measure(TeamKind::grid, blocks, groups.back(), blocks, false);
      if (batch > 64) continue;
      for (const int blocks : {132, 128, 112, 96, 80, 66, 48, 33})
        layouts.measure(TeamKind::grid, blocks, groups.back(), blocks, true);
      for (const int blocks : {4, 8, 16}) layouts.measure(TeamKind::cluster, blocks, 3, 112, true);
    }
}

// A free phase of P-conv's network by clusters of so many blocks.
void measure_maps(const Table& table, const std::string& wanted) {
  Device device;
  must(read_device(device), "device");
  const Convolution made{{5, 5}, {1, 1}, {0, 0}, {2, 2}, Pool::max};
  Network<float> network;
  network.shape = chain_of({{1, 28, 28}, {32, 12, 12}, {64, 4, 4}, {10, 1, 1}}, {made, made}, false, false, false);
  for (int l = 0; l < 3; ++l)
    network.rules.push_back({Activation::hard_sigmoid, Dynamics::prototypical, l < 2, true, 1});
  for (const int64_t batch : {20, 28, 33, 66}) {
    aten::WholePhase<float> phase{.network = network, .batch = batch, .both_ways = false};
    for (int l = 0; l < 3; ++l) {
      const int64_t units = batch * network.shape.layers[l].units();
      phase.weights.push_back(random_numbers(network.shape.weight_count(l), 0.05f));
      phase.biases.push_back(random_numbers(network.shape.above(l).channels, 0.1f));
      phase.state.push_back(random_numbers(units, 1));
      phase.next.push_back(random_numbers(units, 1));
      phase.next_seen.push_back(nullptr);
    }
    phase.seen = phase.state;
    phase.drive = random_numbers(batch * network.shape.layers[0].units(), 1);
    phase.largest = 1e30f;
    phase.broken = reinterpret_cast<int*>(random_numbers(1, 1));
    for (const int blocks : {4, 5, 6, 8, 16}) {
      const auto plan = maps::planning::try_plan(device, network.shape, sizeof(float), blocks);
      const std::string name = "p-conv-b" + std::to_string(batch) + "/maps-" + std::to_string(blocks);
      if (!plan || name.find(wanted) == std::string::npos) continue;
      const auto steps = [&](int count) {
        phase.steps = count;
        must(maps::relax(*plan, maps::problem_of(phase, plan->layout), static_cast<int>(batch), nullptr), "launch");
      };
      table.add("free/" + name, microseconds_a_round(steps, 10, 110), "us");
      table.add("once/" + name, microseconds([&] { steps(1); }), "us");
    }
  }
}

}  // namespace
}  // namespace micro

int main(int count, char** words) {
  if (count == 2 || count == 3) {
    const micro::Table table(words[1]);
    const std::string wanted = count == 3 ? words[2] : "";
    micro::measure_maps(table, wanted);
    micro::measure_layouts(table, wanted);
    return 0;
  }
  std::printf("layouts TABLE [PART]\n");
  return 2;
}
