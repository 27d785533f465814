// The rules by which a network's parameters move where they lie packed: continual EP, and gradient descent with EP's
// estimate. They take a batch from the free phase to the weights that the next batch finds.
#pragma once

#include "descent.h"
#include "phases.h"

namespace ceprop::CEPROP_SET {

// Walks through EP's phases of a batch. begin() is called after the free phase, gather(part, between, divisor, first)
// after each step that learns. Returns the last buffer, or none if nothing may be learned. `rate` is what contrasts are
// multiplied by, at most.
template <class Engine, class Begin, class Gather>
std::optional<int> take_estimate(const Worker& worker, LearningPhases<Engine>& phases,
                                 typename Engine::Relaxation& relaxation,
                                 const LearnCall<typename Engine::Scalar>& call, double rate, const Begin& begin,
                                 const Gather& gather) {
  const Stages& stages = phases.stages();
  const Walked walked = phases.run(
      worker,
      [&] {
        relaxation.note_parameters(worker, phases.sanity());
        begin();
      },
      [&](Part& part, const Stage& stage, const Nudge& nudge, int from, int to, int number) {
        relaxation.step(worker, part, from, to, &nudge);
        gather(part, Between{from, to, from, to}, stage.divisor, number == 0);
      });
  const double times = stages.steps_learn ? 2.0 * call.nudged_steps : 1.0;
  const double of_dynamics =
      times / std::abs(stages.divisor) / static_cast<double>(call.batch.size) * phases.largest_contrast();
  if (!phases.holds(worker, rate * std::max(of_dynamics, phases.largest_of_readout())) || worker.has_ended()) return {};
  return walked.last;
}

// Returns the ends of the phases that EP compares, after it has taken a gate's slopes there. Ends with a barrier if so.
template <class Engine>
Between ends_of(const Worker& worker, const LearningPhases<Engine>& phases, typename Engine::Relaxation& relaxation,
                Gate gate, int last) {
  const Between between = phases.ends(last);
  if constexpr (Engine::has_gates)
    if (gate != Gate::none) relaxation.take_slopes_at(worker, between.fixed, between.slopes);
  return between;
}

// Continual EP: the weights move at every nudged step.
template <class Engine>
class ContinualRule {
 public:
  using T = typename Engine::Scalar;
  using Call = CepCall<T>;
  using Relaxation = typename Engine::Relaxation;

  ContinualRule(const Call& call, Relaxation& relaxation, int threads)
      : call_(call),
        relaxation_(relaxation),
        contrast_(relaxation, call.shared_update, threads),
        learning_(call, relaxation, contrast_, threads),
        phases_(call, stages_of(call), relaxation, threads) {}

  LearningPhases<Engine>& phases() { return phases_; }
  void load(const Worker&) {}

  // Learns from a batch; begin() is called after the free phase. Returns whether it may be kept, which all workers
  // agree on. No barrier at the end.
  template <class Begin>
  bool learn(const Worker& worker, const Begin& begin) {
    const Part mine = relaxation_.by_units(worker);
    const Walked walked = phases_.run(
        worker,
        [&] {
          begin();
          learning_.load(worker);
        },
        [&](Part& part, const Stage& stage, const Nudge& nudge, int from, int to, int) {
          learning_.step(worker, part, from, to, nudge, stage.divisor);
        });
    relaxation_.note_parameters(worker, phases_.sanity());
    learning_.note_parameters(worker, mine, phases_.sanity());
    worker.wait();
    if (worker.has_ended() || !phases_.holds(worker, largest_update())) return false;
    learning_.finish(worker, mine, walked.last, walked.count);
    const int readout = call_.network.shape.connection_count() - 1;
    phases_.learn_readout(
        worker, contrast_, walked.last,
        [&](bool first) {
          return continual_blend<T>(call_.lr[readout], first ? call_.weight_decay : 0, phases_.stages().nudged,
                                    batch());
        },
        call_.network.weights.back(), call_.network.biases.back());
    return true;
  }

  // Writes what lies packed back into the network's parameters. No barrier.
  void store(const Worker& worker) const { learning_.store(worker, relaxation_.by_units(worker)); }

 private:
  double batch() const { return static_cast<double>(call_.batch.size); }

  double largest_update() {
    const double fastest = *std::max_element(call_.lr.begin(), call_.lr.end()) / std::abs(call_.nudge.beta);
    return std::max({fastest / batch() * phases_.largest_contrast(), learning_.largest_input_update(phases_.sanity()),
                     fastest * phases_.largest_of_readout()});
  }

  const Call& call_;
  Relaxation& relaxation_;
  typename Engine::Contrast contrast_;
  typename Engine::Learning learning_;
  LearningPhases<Engine> phases_;
};

// EP: the weights move once a batch, by gradient descent.
template <class Engine>
class DescentRule {
 public:
  using T = typename Engine::Scalar;
  using Call = DescentCall<T>;
  using Relaxation = typename Engine::Relaxation;

  DescentRule(const Call& call, Relaxation& relaxation, int threads)
      : call_(call),
        relaxation_(relaxation),
        contrast_(relaxation, call.shared_update, threads),
        phases_(call, stages_of(call), relaxation, threads),
        descent_(call, relaxation, contrast_, phases_.stages().steps_learn, threads) {
    if (!call.network.shape.has_readout()) return;
    const NetworkShape& shape = call.network.shape;
    for (const int64_t count : {shape.weight_count(shape.layer_count()), shape.classes})
      readout_.push_back(Buffer<T>::zeros(count));
  }

  LearningPhases<Engine>& phases() { return phases_; }
  void load(const Worker& worker) {
    descent_.load(worker, relaxation_.by_units(worker));
    if (call_.momentum != 0)
      for_readout(worker, [](int64_t count, T*, T* g, const T* momenta) { std::copy(momenta, momenta + count, g); });
  }

  // As that of ContinualRule.
  template <class Begin>
  bool learn(const Worker& worker, const Begin& begin) {
    const double fastest = *std::max_element(call_.lr.begin(), call_.lr.end());
    const auto last = take_estimate(worker, phases_, relaxation_, call_, std::max(1.0, fastest), begin,
                                    [&](Part& part, const Between& between, double divisor, bool first) {
                                      descent_.gather(worker, part, between, divisor, first);
                                    });
    if (!last) return false;
    const Part mine = relaxation_.by_units(worker);
    if (phases_.stages().steps_learn) {
      descent_.move(worker, mine, nullptr, 1);
    } else {
      const Between between = ends_of(worker, phases_, relaxation_, call_.gate, *last);
      descent_.move(worker, mine, &between, phases_.stages().divisor);
    }
    learn_readout(worker, *last);
    return true;
  }

  void store(const Worker& worker) const {
    descent_.store(worker, relaxation_.by_units(worker));
    if (call_.momentum != 0)
      for_readout(worker, [](int64_t count, T*, const T* g, T* momenta) { std::copy(g, g + count, momenta); });
  }

 private:
  void learn_readout(const Worker& worker, int last) {
    if (readout_.empty()) return;
    phases_.learn_readout(
        worker, contrast_, last,
        [&](bool first) {
          return gathering_blend<T>(call_.momentum, phases_.stages().nudged, static_cast<double>(call_.batch.size),
                                    first);
        },
        readout_[0].get(), call_.network.biases.back() ? readout_[1].get() : nullptr);
    for_readout(worker,
                [&](int64_t count, T* p, T* g, T*) { descend(count, call_.lr.back(), call_.weight_decay, p, g); });
  }

  // Calls body(count, parameters, g, momenta) for this worker's share of a readout's weights and of its biases.
  template <class Body>
  void for_readout(const Worker& worker, const Body& body) const {
    if (readout_.empty()) return;
    const NetworkShape& shape = call_.network.shape;
    const auto all = [&](T* parameters, T* gathered, const std::vector<T*>& momenta, int64_t count) {
      if (!parameters) return;
      const auto [begin, end] = worker.share(count);
      T* const momentum = momenta.empty() ? nullptr : momenta.back() + begin;
      body(end - begin, parameters + begin, gathered + begin, momentum);
    };
    all(call_.network.weights.back(), readout_[0].get(), call_.weight_momenta, shape.weight_count(shape.layer_count()));
    all(call_.network.biases.back(), readout_[1].get(), call_.bias_momenta, shape.classes);
  }

  const Call& call_;
  Relaxation& relaxation_;
  typename Engine::Contrast contrast_;
  LearningPhases<Engine> phases_;
  typename Engine::Descent descent_;
  std::vector<Buffer<T>> readout_;  // g, of its weights and biases
};

}  // namespace ceprop::CEPROP_SET
