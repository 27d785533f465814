// The kernels that the ops call, on one batch or on many. See kernels.h.
#pragma once

#include "gathering.h"
#include "kernels.h"
#include "rules.h"

namespace ceprop::CEPROP_SET {

template <class Engine>
bool relax(const RelaxCall<typename Engine::Scalar>& call, int threads) {
  typename Engine::Relaxation relaxation(call.network, call.batch, threads);
  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    relaxation.load_parameters(worker);
    relaxation.load_batch(worker, call.initial);
    Part part = relaxation.by_samples(worker);
    const Nudge* nudge = call.batch.target ? &call.nudge : nullptr;
    const Walked walked = walk_phase(relaxation, worker, part, call.steps, 0, call.stop, nudge);
    note_steps(worker, call.stop, 0, walked.count);
    relaxation.store(part, walked.last, call.states.data());
  });
}

template <class Engine>
bool ep_step(const EpCall<typename Engine::Scalar>& call, int threads) {
  using T = typename Engine::Scalar;
  const Stages stages = stages_of(call);
  typename Engine::Relaxation relaxation(call.network, call.batch, threads, std::nullopt, call.gate,
                                         stages.steps_learn);
  typename Engine::Contrast contrast(relaxation, call.shared_update, threads);
  LearningPhases<Engine> phases(call, stages, relaxation, threads);
  const auto batch = static_cast<double>(call.batch.size);

  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    relaxation.load_parameters(worker);
    const auto learn = [&](const Between& between, double divisor, bool first) {
      contrast.differ(worker, between);
      contrast.add_to_gradients(worker, between, gradient_blend<T>(divisor, batch, first), call);
    };
    const auto last = take_estimate(
        worker, phases, relaxation, call, 1, [] {},
        [&](Part&, const Between& between, double divisor, bool first) { learn(between, divisor, first); });
    if (!last) return;
    if (!stages.steps_learn) learn(ends_of(worker, phases, relaxation, call.gate, *last), stages.divisor, true);
    phases.learn_readout(
        worker, contrast, *last, [&](bool fresh) { return gradient_blend<T>(stages.nudged, batch, fresh); },
        call.gradients.back(), call.bias_gradients.back());
  });
}

template <class Engine>
bool cep_step(const CepCall<typename Engine::Scalar>& call, int threads) {
  typename Engine::Relaxation relaxation(call.network, call.batch, threads, call.forms, call.gate);
  ContinualRule<Engine> rule(call, relaxation, threads);
  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    relaxation.load_parameters(worker);
    if (rule.learn(worker, [] {})) rule.store(worker);
  });
}

template <class T>
std::optional<Forms> forms_of(const CepCall<T>& call) {
  return call.forms;
}
template <class T>
std::optional<Forms> forms_of(const DescentCall<T>&) {
  return {};
}

// Learns from the batches one after the other, while the parameters stay packed; they are written when all is done, or
// the call was interrupted after a batch. Where a batch may not be kept nothing is written at all, and the steps of
// that batch say so. Leaves in `call` what it was told of the last batch.
template <class Engine, template <class> class Rule>
Learned learn(typename Rule<Engine>::Call& call, const DataSet<typename Engine::Scalar>& data, const Batches& batches,
              int threads) {
  Gathering<typename Engine::Scalar> gathering(call, data, batches, threads);
  gathering.aim_at(0);
  typename Engine::Relaxation relaxation(call.network, call.batch, threads, forms_of(call), call.gate,
                                         stages_of(call).steps_learn, batches.count > 1);
  Rule<Engine> rule(call, relaxation, threads);
  const bool is_one = batches.count == 1;
  Watch between_batches(is_one ? nullptr : batches.interrupted);
  Learned learned{};
  learned.interrupted = run_team(threads, is_one ? batches.interrupted : nullptr, [&](const Worker& worker) {
    relaxation.load_parameters(worker);
    rule.load(worker);
    for (int64_t batch = 0; batch < batches.count && !worker.has_ended(); ++batch) {
      if (worker.index == 0) {
        gathering.aim_at(batch);
        rule.phases().start(stages_of(call));
      }
      gathering.gather(worker, batch);
      worker.wait();
      if (!rule.learn(worker, [&] { gathering.judge(worker); })) return;
      worker.wait();
      relaxation.load_readout(worker);
      if (worker.index == 0) {
        gathering.count(batch);
        learned.batches = batch + 1;
        if (between_batches.sees_interrupt()) worker.barrier->end();
      }
      worker.wait();
    }
    rule.store(worker);
  });
  return learned;
}

}  // namespace ceprop::CEPROP_SET
