// Calls the portable CPU kernels on random networks, for the sanitizers to watch: every kernel, with one worker and
// with three. Exits with 1 if the two give different bits. Compiled for numbers of one type, NUMBER.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <list>
#include <random>

#include "../../../csrc/cpu/kernels_prelude.h"
#include "../../../csrc/model/chain.h"
#include "../../../csrc/model/costs.h"

#define CEPROP_SET portable
#define CEPROP_VECTOR_BYTES 16
#include "../../../csrc/cpu/kernels_impl.h"

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

// The first connections of a network, if they are convolutions; the widths say how many channels and units there are.
struct Chain {
  MapShape input;
  std::vector<Convolution> convolutions;
};

struct Settings {
  int op;                       // relax, ep_step, cep_step; the two kernels of many batches
  std::vector<int64_t> widths;  // channels or units
  Chain chain;
  int64_t batch;
  bool readout, free_feedback, asynchronous, symmetric, shared_update, accumulate, bias;
  Dynamics dynamics;
  Loss loss;
  NudgeAt at;
  Activation activation;
  int free_steps, nudged_steps;
  std::optional<double> tolerance;
  double weight_decay;
  Forms forms;
  Gate gate;
  unsigned seed;
};

NetworkShape shape_of(const Settings& settings) {
  const std::vector<Convolution>& convolutions = settings.chain.convolutions;
  std::vector<MapShape> maps{convolutions.empty() ? MapShape{settings.widths[0], 1, 1} : settings.chain.input};
  for (size_t c = 0; c + 1 < settings.widths.size(); ++c) {
    MapShape above{settings.widths[c + 1], 1, 1};
    if (c < convolutions.size()) {
      const auto size = [&](int i, int64_t of) {
        const Convolution& made = convolutions[c];
        return ((of + 2 * made.padding[i] - made.kernel[i]) / made.stride[i] + 1) / made.window[i];
      };
      above = {above.channels, size(0, maps.back().height), size(1, maps.back().width)};
    }
    maps.push_back(above);
  }
  return chain_of(maps, convolutions, settings.readout, settings.free_feedback, settings.asynchronous);
}

template <class T>
Network<T> random_network(const Settings& settings, Memory<T>& memory) {
  Network<T> network;
  network.shape = shape_of(settings);
  network.free_feedback = settings.free_feedback;
  network.input_activation = settings.activation;
  for (int l = 0; l < network.shape.layer_count(); ++l) {
    const bool is_top = l == network.shape.output;
    const bool linear = is_top && !settings.readout && settings.loss == Loss::cross_entropy;
    network.rules.push_back({linear ? Activation::linear : settings.activation, settings.dynamics,
                             !is_top && !settings.free_feedback, true, 0.3});
  }
  const auto parameter = [&](int64_t count, double scale) {
    T* data = memory.random(count, scale);
    memory.watch(data, count);
    return data;
  };
  for (int c = 0; c < network.shape.connection_count(); ++c) {
    const int64_t count = network.shape.weight_count(c), above = network.shape.above(c).channels;
    const double scale = 0.5 * std::sqrt(static_cast<double>(above) / static_cast<double>(count));
    network.weights.push_back(parameter(count, scale));
    network.biases.push_back(settings.bias ? parameter(above, 0.3) : nullptr);
    if (network.shape.connections[c].feedback >= 0) network.feedback.push_back(parameter(count, scale));
  }
  return network;
}

template <class T>
std::vector<T*> states(const Network<T>& network, int64_t batch, int phases, Memory<T>& memory) {
  std::vector<T*> result;
  for (int phase = 0; phase < phases; ++phase)
    for (const MapShape& layer : network.shape.layers) result.push_back(memory.result(batch * layer.units()));
  return result;
}

template <class Call>
void set_rates(Call& call, const Settings& settings) {
  for (size_t c = 0; c < call.network.weights.size(); ++c) call.lr.push_back(0.05 * static_cast<double>(c + 1));
  call.weight_decay = settings.weight_decay;
}

// Two batches of a data set that is as large as one.
template <class T, class Call>
void learn_from_many(Call& call, Learned (*kernel)(Call&, const DataSet<T>&, const Batches&, int), int threads,
                     int64_t* steps_used, Memory<T>& memory) {
  const int64_t size = call.batch.size;
  std::vector<int64_t> order(2 * size), steps(8), wrong(2);
  for (int64_t i = 0; i < 2 * size; ++i) order[i] = 7 * i % size;
  std::vector<double> rates = call.lr, losses(2);
  rates.insert(rates.end(), call.lr.begin(), call.lr.end());
  const double betas[] = {0.3, -0.3};
  const DataSet<T> data{call.batch.x, nullptr, nullptr, 0, call.batch.target, nullptr};
  const Batches batches{2, order.data(), betas, rates.data(), losses.data(), wrong.data(), steps.data(), nullptr};
  const Learned learned = kernel(call, data, batches, threads);
  T* const found = memory.result(5);
  for (int i = 0; i < 2; ++i) found[i] = static_cast<T>(losses[i]), found[2 + i] = static_cast<T>(wrong[i]);
  found[4] = static_cast<T>(learned.batches);
  std::copy(steps.begin(), steps.begin() + 4, steps_used);
}

template <class T>
std::vector<T> run(const Settings& settings, int threads) {
  Memory<T> memory(settings.seed);
  const Network<T> network = random_network(settings, memory);
  const Batch<T> batch{settings.batch, memory.random(settings.batch * network.shape.input.units(), 1),
                       memory.random(settings.batch * network.shape.classes, 1)};
  const Nudge nudge{0.3, settings.at, settings.loss};
  int64_t steps_used[4] = {};
  const Stop stop{settings.tolerance, steps_used};
  const KernelsOf<T>& kernels = portable::kernels_of<T>;
  const auto learn = [&](LearnCall<T>& call) {
    call.network = network;
    call.batch = batch;
    call.nudge = nudge;
    call.free_steps = settings.free_steps;
    call.nudged_steps = settings.nudged_steps;
    call.stop = stop;
    call.symmetric = settings.symmetric;
    call.shared_update = settings.shared_update;
    call.gate = settings.gate;
    call.free_states = states(network, settings.batch, 1, memory);
    call.nudged_states = states(network, settings.batch, settings.symmetric ? 2 : 1, memory);
  };
  if (settings.op == 0) {
    RelaxCall<T> call{network, batch, nudge, settings.free_steps, stop, {}, {}};
    for (T* s : states(network, settings.batch, 1, memory)) call.initial.push_back(s);
    call.states = states(network, settings.batch, 1, memory);
    kernels.relax(call, threads);
  } else if (settings.op == 1) {
    EpCall<T> call;
    learn(call);
    call.accumulate = settings.accumulate;
    for (int c = 0; c < network.shape.connection_count(); ++c) {
      const int64_t count = network.shape.weight_count(c);
      call.gradients.push_back(memory.result(count));
      call.bias_gradients.push_back(settings.bias ? memory.result(network.shape.above(c).channels) : nullptr);
      if (network.shape.connections[c].feedback >= 0) call.feedback_gradients.push_back(memory.result(count));
    }
    kernels.ep_step(call, threads);
  } else if (settings.op == 4) {
    DescentCall<T> call;
    learn(call);
    set_rates(call, settings);
    call.accumulate = settings.accumulate;
    call.momentum = settings.weight_decay == 0 ? 0.9 : 0;
    for (int c = 0; c < network.shape.connection_count() && call.momentum != 0; ++c) {
      const int64_t count = network.shape.weight_count(c);
      call.weight_momenta.push_back(memory.result(count));
      call.bias_momenta.push_back(settings.bias ? memory.result(network.shape.above(c).channels) : nullptr);
      if (network.shape.connections[c].feedback >= 0) call.feedback_momenta.push_back(memory.result(count));
    }
    learn_from_many(call, kernels.descend, threads, steps_used, memory);
  } else {
    CepCall<T> call;
    learn(call);
    set_rates(call, settings);
    call.forms = settings.forms;
    if (settings.op == 2)
      kernels.cep_step(call, threads);
    else
      learn_from_many(call, kernels.learn_continually, threads, steps_used, memory);
  }
  std::vector<T> results = memory.results();
  results.insert(results.end(), std::begin(steps_used), std::end(steps_used));
  return results;
}

// Forms drawn among the exact ones.
Forms random_forms(const Settings& settings, std::mt19937& draw) {
  const NetworkShape network = shape_of(settings);
  const StepShape shape{.network = network,
                        .free_feedback = settings.free_feedback,
                        .symmetric = settings.symmetric,
                        .accumulate = false,
                        .shared_update = settings.shared_update,
                        .weight_decay = settings.weight_decay != 0,
                        .literal_input = true,
                        .batch = settings.batch,
                        .free_steps = settings.free_steps,
                        .nudged_steps = settings.nudged_steps,
                        .number_bytes = 8};
  const auto form = [&](bool exact) { return exact && draw() % 3 ? Form::low_rank : Form::literal; };
  return {form(true), form(StepCosts(shape).inner_has_low_rank())};
}

Settings random_settings(int op, const std::vector<int64_t>& widths, const Chain& chain, int64_t batch,
                         std::mt19937& draw) {
  const auto one_of = [&](unsigned count) { return draw() % count == 0; };
  Settings settings{op, widths, chain, batch};
  settings.readout = one_of(4) && widths.size() > 2;
  settings.free_feedback = one_of(2);
  settings.asynchronous = one_of(3);
  settings.symmetric = one_of(3);
  settings.shared_update = settings.free_feedback && one_of(2);
  settings.accumulate = one_of(2);
  settings.bias = !one_of(3);
  settings.dynamics = static_cast<Dynamics>(draw() % 2);
  settings.loss = settings.readout || one_of(3) ? Loss::cross_entropy : Loss::mse;
  settings.at = settings.readout || one_of(2) ? NudgeAt::drive : NudgeAt::state;
  settings.activation = static_cast<Activation>(draw() % 6);
  settings.free_steps = static_cast<int>(draw() % 10);
  settings.nudged_steps = static_cast<int>(1 + draw() % 9);
  if (one_of(2)) settings.tolerance = one_of(2) ? 0.1 : 0.01;
  settings.weight_decay = one_of(3) ? 0.1 : 0;
  if (chain.convolutions.empty()) settings.forms = random_forms(settings, draw);
  const bool may_have_gate = chain.convolutions.empty() && settings.free_feedback && !settings.shared_update;
  settings.gate = may_have_gate ? static_cast<Gate>(draw() % 3) : Gate::none;
  settings.seed = static_cast<unsigned>(draw());
  return settings;
}

struct Shape {
  std::vector<int64_t> widths;
  Chain chain;
};

// Off the tiles and on them, and single units; then strides, padding, every pooling, what windows leave over, and more
// channels than the way down takes at a time.
std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes;
  for (const std::vector<int64_t>& widths : std::vector<std::vector<int64_t>>{
           {5, 3}, {1, 1, 1}, {20, 33, 7}, {3, 1, 1, 2}, {2, 65, 40, 9}, {30, 9, 70, 6}, {12, 70, 80, 9}, {17, 17, 17}})
    shapes.push_back({widths, {}});
  const Convolution max{{3, 2}, {1, 1}, {1, 0}, {2, 2}, Pool::max}, avg{{2, 2}, {1, 1}, {0, 1}, {2, 1}, Pool::avg};
  const Convolution plain{{3, 3}, {2, 1}, {1, 2}, {1, 1}, Pool::none}, large{{5, 5}, {1, 1}, {2, 2}, {3, 2}, Pool::max};
  shapes.push_back({{2, 5, 7, 4}, {{2, 9, 8}, {max, avg}}});
  shapes.push_back({{1, 3, 65, 6, 2}, {{1, 8, 7}, {plain, large}}});
  shapes.push_back({{3, 9, 1, 3}, {{3, 7, 10}, {avg, max}}});
  return shapes;
}

template <class T>
int differences(int repeats) {
  std::mt19937 draw(sizeof(T));  // other settings for each type
  int count = 0, early = 0, different = 0;
  for (const auto& [widths, chain] : all_shapes())
    for (const int64_t batch : {1, 2, 7, 13})
      for (int op = 0; op < 5; ++op)
        for (int repeat = 0; repeat < (op < 3 ? repeats : repeats / 2); ++repeat) {
          const Settings settings = random_settings(op, widths, chain, batch, draw);
          const std::vector<T> one = run<T>(settings, 1), three = run<T>(settings, 3);
          ++count;
          early += one[one.size() - 4] < settings.free_steps;
          different += std::memcmp(one.data(), three.data(), one.size() * sizeof(T)) != 0;
        }
  std::printf("%d calls, %d free phases ended early, %d differ between one worker and three\n", count, early,
              different);
  return different;
}

int main() { return differences<NUMBER>(4) != 0; }
