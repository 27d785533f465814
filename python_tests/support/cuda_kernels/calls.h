// One call of the kernels: read from a file, its results written to another. See emulated_device.py, which writes the
// first and reads the second. A program that includes this defines plan_and_launch().
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "../../../csrc/model/chain.h"
#include "../../../csrc/model/stages.h"

using namespace ceprop;

// How a call is to run: on which device, and by which kind of team (0: one block, 1: a cluster, 2: the grid; 3 and 4: a
// block and a cluster of which the grid moves C-EP's weights).
struct Wanted {
  int multiprocessors;
  int64_t shared_bytes;
  int cluster_blocks, team;
};

// Runs the call under the emulation, its kernel as planned for a device; throws if it does not fit.
template <class T, class Call>
void plan_and_launch(const Call& call, const Wanted& wanted);

class Input {
 public:
  explicit Input(const char* path) : file_(path, std::ios::binary) {}

  int64_t integer() { return read<int64_t>(); }
  double real() { return read<double>(); }
  std::vector<int64_t> integers() {
    std::vector<int64_t> all(integer());
    for (int64_t& value : all) value = integer();
    return all;
  }
  // In exact-sized memory, so that a step beyond it is seen; null if it has no numbers.
  template <class T>
  T* array(std::vector<std::shared_ptr<cuda_emulation::DeviceArray<T>>>& keep) {
    const int64_t count = integer();
    if (count == 0) return nullptr;
    keep.push_back(std::make_shared<cuda_emulation::DeviceArray<T>>(count));
    file_.read(reinterpret_cast<char*>(keep.back()->get()), count * sizeof(T));
    return keep.back()->get();
  }

 private:
  template <class Value>
  Value read() {
    Value value;
    if (!file_.read(reinterpret_cast<char*>(&value), sizeof(Value))) throw std::runtime_error("the call is cut off");
    return value;
  }
  std::ifstream file_;
};

template <class T>
class Run {
 public:
  Run(Input& input, const char* output) : input_(input), output_(output, std::ios::binary) {}

  void run(Op op) {
    if (op == Op::relax) {
      RelaxCall<T> call;
      read_common(call);
      call.steps = static_cast<int>(input_.integer());
      if (input_.integer())
        for (int l = 0; l < call.network.shape.layer_count(); ++l) call.initial.push_back(input_.array(arrays_));
      call.states = results(call, 1);
      execute(call, op);
    } else if (op == Op::ep_step) {
      EpCall<T> call;
      read_learning(call);
      call.accumulate = input_.integer();
      const Network<T>& network = call.network;
      for (size_t c = 0; c < network.weights.size(); ++c) {
        const int64_t count = of_parameter(network.weights[c]);
        call.gradients.push_back(result(count));
        call.bias_gradients.push_back(network.biases[c] ? result(of_parameter(network.biases[c])) : nullptr);
        if (c > 0 && c <= network.feedback.size()) call.feedback_gradients.push_back(result(count));
      }
      execute(call, op);
    } else {
      CepCall<T> call;
      read_learning(call);
      call.forms = {Form::literal, Form::literal};
      call.weight_decay = input_.real();
      for (size_t c = 0; c < call.network.weights.size(); ++c) call.lr.push_back(input_.real());
      for (const auto& parameter : parameters_) results_.push_back(parameter);
      execute(call, op);
    }
  }

 private:
  template <class Call>
  void read_common(Call& call) {
    Network<T>& network = call.network;
    const bool readout = input_.integer();
    network.free_feedback = input_.integer();
    const bool asynchronous = input_.integer();
    const std::vector<int64_t> sizes = input_.integers(), made = input_.integers();
    std::vector<MapShape> maps;
    for (size_t i = 0; i < sizes.size(); i += 3) maps.push_back({sizes[i], sizes[i + 1], sizes[i + 2]});
    std::vector<Convolution> convolutions;
    for (size_t i = 0; i < made.size(); i += 9)
      convolutions.push_back({{made[i], made[i + 1]},
                              {made[i + 2], made[i + 3]},
                              {made[i + 4], made[i + 5]},
                              {made[i + 6], made[i + 7]},
                              static_cast<Pool>(made[i + 8])});
    network.shape = chain_of(maps, convolutions, readout, network.free_feedback, asynchronous);
    const int layers = network.shape.layer_count();
    const auto activation = static_cast<Activation>(input_.integer());
    const auto output_activation = static_cast<Activation>(input_.integer());
    const auto dynamics = static_cast<Dynamics>(input_.integer());
    const bool clips = input_.integer();
    const double dt = input_.real();
    network.input_activation = activation;
    for (int l = 0; l < layers; ++l) {
      const bool is_top = l + 1 == layers;
      network.rules.push_back({is_top && !readout ? output_activation : activation, dynamics,
                               !is_top && !network.free_feedback, clips, dt});
    }
    for (auto* list : {&network.weights, &network.biases, &network.feedback}) {
      const size_t count = list == &network.feedback ? (network.free_feedback ? layers - 1 : 0) : maps.size() - 1;
      for (size_t i = 0; i < count; ++i) {
        list->push_back(input_.array(arrays_));
        if (list->back()) parameters_.push_back(arrays_.back());
      }
    }
    call.batch.size = input_.integer();
    call.batch.x = input_.array(arrays_);
    call.batch.target = input_.array(arrays_);
    call.batch.labels = input_.array(labels_);
    call.nudge.beta = input_.real();
    call.nudge.at = static_cast<NudgeAt>(input_.integer());
    call.nudge.loss = static_cast<Loss>(input_.integer());
    const double tolerance = input_.real();
    if (tolerance >= 0) call.stop.tolerance = tolerance;
    call.stop.steps_used = steps_used_.get();
  }

  void read_learning(LearnCall<T>& call) {
    read_common(call);
    call.free_steps = static_cast<int>(input_.integer());
    call.nudged_steps = static_cast<int>(input_.integer());
    call.symmetric = input_.integer();
    call.shared_update = input_.integer();
    call.gate = static_cast<Gate>(input_.integer());
    call.free_states = results(call, 1);
    call.nudged_states = results(call, call.symmetric ? 2 : 1);
  }

  int64_t of_parameter(const T* at) const {
    for (const auto& parameter : parameters_)
      if (parameter->get() == at) return static_cast<int64_t>(parameter->size());
    throw std::runtime_error("no such parameter");
  }
  T* result(int64_t count) {
    results_.push_back(std::make_shared<cuda_emulation::DeviceArray<T>>(count));
    return results_.back()->get();
  }
  template <class Call>
  std::vector<T*> results(const Call& call, int phases) {
    std::vector<T*> all;
    for (int phase = 0; phase < phases; ++phase)
      for (const MapShape& layer : call.network.shape.layers) all.push_back(result(call.batch.size * layer.units()));
    return all;
  }

  template <class Call>
  void execute(const Call& call, Op op) {
    const Wanted wanted{static_cast<int>(input_.integer()), input_.integer(), static_cast<int>(input_.integer()),
                        static_cast<int>(input_.integer())};
    auto& options = cuda_emulation::options;
    options.multiprocessors = static_cast<unsigned>(wanted.multiprocessors);
    options.shared_bytes = static_cast<std::size_t>(wanted.shared_bytes);
    options.cluster_blocks = static_cast<unsigned>(std::max(wanted.cluster_blocks, 1));
    options.seed = static_cast<uint64_t>(input_.integer());
    plan_and_launch<T>(call, wanted);
    for (int phase = 0; phase < 4; ++phase) {
      const int64_t steps = steps_used_[phase];
      output_.write(reinterpret_cast<const char*>(&steps), sizeof steps);
    }
    for (const auto& array : results_)
      output_.write(reinterpret_cast<const char*>(array->get()), array->size() * sizeof(T));
  }

  Input& input_;
  std::ofstream output_;
  std::vector<std::shared_ptr<cuda_emulation::DeviceArray<T>>> arrays_, parameters_, results_;
  std::vector<std::shared_ptr<cuda_emulation::DeviceArray<int64_t>>> labels_;
  cuda_emulation::DeviceArray<int64_t> steps_used_{4};
};

// Reads a call from one file and writes its results to another; what went wrong, on stderr, and false. With ONLY_FLOAT
// it takes float32 alone, and compiles in half the time.
inline bool run_one(const char* call, const char* results) {
  try {
    Input input(call);
    const auto op = static_cast<Op>(input.integer());
    if (input.integer() == 4)
      Run<float>(input, results).run(op);
    else
#ifdef ONLY_FLOAT
      throw std::runtime_error("takes float32 alone");
#else
      Run<double>(input, results).run(op);
#endif
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
  return true;
}

// PROGRAM CALL RESULTS SITE: the barrier at SITE, "file:line", is left out, if it is not empty. Prints the barriers
// that were met.
// PROGRAM CALL RESULTS turns: prints what shared_memory_turns() gives.
inline int run_program(char** argv) {
  auto& options = cuda_emulation::options;
  options.counts_turns = std::string(argv[3]) == "turns";
  if (!options.counts_turns) options.skipped_site = argv[3];
  if (!run_one(argv[1], argv[2])) return 1;
  for (const auto& [address, turns] : cuda_emulation::shared_memory_turns())
    std::printf("%zx %u\n", static_cast<std::size_t>(address), turns);
  if (!options.counts_turns)
    for (const std::string& site : cuda_emulation::barrier_sites()) std::printf("%s\n", site.c_str());
  return 0;
}
