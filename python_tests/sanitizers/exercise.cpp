// Calls the portable CPU kernels on random networks, for the sanitizers to watch: every op, with one worker and with
// three. Exits with 1 if the two give different bits.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <list>
#include <random>

#include "../../csrc/cpu/kernels.h"

using namespace ceprop;

// Exact-sized memory, so that a step beyond it is seen.
template <class T>
class Memory {
 public:
  explicit Memory(unsigned seed) : random_(seed) {}

  T* random(int64_t count, double scale) {
    std::vector<T>& block = blocks_.emplace_back(count);
    std::uniform_real_distribution<double> draw(-scale, scale);
    for (T& value : block) value = static_cast<T>(draw(random_));
    return block.data();
  }
  // Starts as garbage; part of what a run is judged by.
  T* result(int64_t count) {
    T* data = random(count, 9);
    watch(data, count);
    return data;
  }
  void watch(const T* data, int64_t count) { watched_.push_back({data, count}); }

  std::vector<T> results() const {
    std::vector<T> all;
    for (const auto& [data, count] : watched_) all.insert(all.end(), data, data + count);
    return all;
  }

 private:
  std::mt19937 random_;
  std::list<std::vector<T>> blocks_;
  std::vector<std::pair<const T*, int64_t>> watched_;
};

struct Settings {
  int op;  // relax, ep_step, cep_step
  std::vector<int64_t> widths;
  int64_t batch;
  bool readout, free_feedback, symmetric, shared_update, accumulate, bias;
  Dynamics dynamics;
  Loss loss;
  NudgeAt at;
  Activation activation;
  int free_steps, nudged_steps;
  double weight_decay;
  unsigned seed;
};

template <class T>
Network<T> random_network(const Settings& settings, Memory<T>& memory) {
  Network<T> network;
  network.layers = static_cast<int>(settings.widths.size()) - 1 - settings.readout;
  network.readout = settings.readout;
  network.free_feedback = settings.free_feedback;
  network.widths = settings.widths;
  network.input_activation = settings.activation;
  for (int l = 0; l < network.layers; ++l) {
    const bool is_top = l + 1 == network.layers;
    const bool linear = is_top && !settings.readout && settings.loss == Loss::cross_entropy;
    network.rules.push_back({linear ? Activation::linear : settings.activation, settings.dynamics,
                             !is_top && !settings.free_feedback, true, 0.3});
  }
  const auto parameter = [&](int64_t count, double scale) {
    T* data = memory.random(count, scale);
    memory.watch(data, count);
    return data;
  };
  for (size_t c = 0; c + 1 < settings.widths.size(); ++c) {
    const int64_t below = settings.widths[c], above = settings.widths[c + 1];
    const double scale = 0.5 / std::sqrt(static_cast<double>(below));
    network.weights.push_back(parameter(below * above, scale));
    network.biases.push_back(settings.bias ? parameter(above, 0.3) : nullptr);
    if (settings.free_feedback && c > 0 && static_cast<int>(c) < network.layers)
      network.feedback.push_back(parameter(below * above, scale));
  }
  return network;
}

template <class T>
std::vector<T*> states(const Network<T>& network, int64_t batch, int phases, Memory<T>& memory) {
  std::vector<T*> result;
  for (int phase = 0; phase < phases; ++phase)
    for (int l = 0; l < network.layers; ++l) result.push_back(memory.result(batch * network.widths[l + 1]));
  return result;
}

template <class T>
std::vector<T> run(const Settings& settings, int threads) {
  Memory<T> memory(settings.seed);
  const Network<T> network = random_network(settings, memory);
  const Batch<T> batch{settings.batch, memory.random(settings.batch * network.widths[0], 1),
                       memory.random(settings.batch * network.classes(), 1)};
  const Nudge nudge{0.3, settings.at, settings.loss};
  const KernelsOf<T>& kernels = default_kernels.of<T>();
  const auto learn = [&](LearnCall<T>& call) {
    call.network = network;
    call.batch = batch;
    call.nudge = nudge;
    call.free_steps = settings.free_steps;
    call.nudged_steps = settings.nudged_steps;
    call.symmetric = settings.symmetric;
    call.shared_update = settings.shared_update;
    call.free_states = states(network, settings.batch, 1, memory);
    call.nudged_states = states(network, settings.batch, settings.symmetric ? 2 : 1, memory);
  };
  if (settings.op == 0) {
    RelaxCall<T> call{network, batch, nudge, settings.free_steps, {}, {}};
    for (T* s : states(network, settings.batch, 1, memory)) call.initial.push_back(s);
    call.states = states(network, settings.batch, 1, memory);
    kernels.relax(call, threads);
  } else if (settings.op == 1) {
    EpCall<T> call;
    learn(call);
    call.accumulate = settings.accumulate;
    for (size_t c = 0; c < network.weights.size(); ++c) {
      const int64_t below = network.widths[c], above = network.widths[c + 1];
      call.d_weights.push_back(memory.result(below * above));
      call.d_biases.push_back(settings.bias ? memory.result(above) : nullptr);
      if (c > 0 && c <= network.feedback.size()) call.d_feedback.push_back(memory.result(below * above));
    }
    kernels.ep_step(call, threads);
  } else {
    CepCall<T> call;
    learn(call);
    for (size_t c = 0; c < network.weights.size(); ++c) call.lr.push_back(0.05 * static_cast<double>(c + 1));
    call.weight_decay = settings.weight_decay;
    kernels.cep_step(call, threads);
  }
  return memory.results();
}

template <class T>
int differences(int repeats) {
  // Off the tiles and on them, single units, and layers wide enough for the low-rank form of the update.
  const std::vector<std::vector<int64_t>> shapes = {{5, 3},         {1, 1, 1},      {20, 33, 7},     {3, 1, 1, 2},
                                                    {2, 65, 40, 9}, {30, 9, 70, 6}, {12, 70, 80, 9}, {17, 17, 17}};
  std::mt19937 draw(5);
  int count = 0, different = 0;
  for (const std::vector<int64_t>& widths : shapes)
    for (const int64_t batch : {1, 2, 7, 13})
      for (int op = 0; op < 3; ++op)
        for (int repeat = 0; repeat < repeats; ++repeat) {
          const bool readout = draw() % 4 == 0 && widths.size() > 2, free_feedback = draw() % 2;
          const Settings settings{op,
                                  widths,
                                  batch,
                                  readout,
                                  free_feedback,
                                  draw() % 2 == 0,
                                  free_feedback && draw() % 2,
                                  draw() % 2 == 0,
                                  draw() % 3 != 0,
                                  static_cast<Dynamics>(draw() % 2),
                                  readout || draw() % 3 == 0 ? Loss::cross_entropy : Loss::mse,
                                  readout || draw() % 2 ? NudgeAt::drive : NudgeAt::state,
                                  static_cast<Activation>(draw() % 6),
                                  static_cast<int>(draw() % 4),
                                  static_cast<int>(1 + draw() % 4),
                                  draw() % 2 ? 0.1 : 0.0,
                                  static_cast<unsigned>(draw())};
          const std::vector<T> one = run<T>(settings, 1), three = run<T>(settings, 3);
          ++count;
          different += std::memcmp(one.data(), three.data(), one.size() * sizeof(T)) != 0;
        }
  std::printf("%d calls, %d differ between one worker and three\n", count, different);
  return different;
}

int main() { return differences<float>(4) + differences<double>(4) != 0; }
