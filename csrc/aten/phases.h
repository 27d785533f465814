// The three ops as sequences of steps of a chain.
#pragma once

#include "../model/largest.h"
#include "../model/stages.h"
#include "chain.h"
#include "tensor_on.h"

namespace ceprop::aten {

template <class T, class Kernels>
class Phases {
 public:
  Phases(const at::TensorOptions& options, bool tf32) : options_(options), tf32_(tf32) {}

  void run(const RelaxCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const Nudge nudge = call.batch.target ? call.nudge : Nudge{};
    store(chain, relax(chain, chain.start(call.initial), call.steps, nudge, call.stop, 0), call.states.data());
  }

  void run(const EpCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const Parameters gradients = chain.wrap_all(call.gradients, call.bias_gradients, call.feedback_gradients);
    const auto by = [&](double divisor, bool fresh) {
      return [&call, divisor, fresh](int) { return gradient_blend<double>(divisor, call.batch.size, fresh); };
    };
    const Stages stages = stages_of(call);
    const Walked walked = walk(chain, call, stages, [&](const Stage& stage, const Ends& ends, int number) {
      learn(chain, call, ends, by(stage.divisor, number == 0), gradients);
    });
    if (!stages.steps_learn) learn(chain, call, walked.ends(stages), by(stages.divisor, true), gradients);
    learn_readout(chain, call, stages, walked, by(stages.nudged, true), gradients);
    const Tensor broken = say_if_broken(chain, call, stages);
    for_each(gradients, [&](const Tensor& gradient) { gradient.masked_fill_(broken, 0); });
  }

  void run(const CepCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const auto by = [&](double divisor) {
      return [&call, divisor](int c) {
        return continual_blend<double>(call.lr[c], call.weight_decay, divisor, call.batch.size);
      };
    };
    Tensors before;
    for_each(chain.parameters, [&](const Tensor& parameter) { before.push_back(parameter.clone()); });
    const Stages stages = stages_of(call);
    const Walked walked = walk(chain, call, stages, [&](const Stage& stage, const Ends& ends, int) {
      learn(chain, call, ends, by(stage.divisor), chain.parameters);
      chain.forget_input();
    });
    learn_readout(chain, call, stages, walked, by(stages.nudged), chain.parameters);
    const Tensor broken = say_if_broken(chain, call, stages);
    auto was = before.begin();
    for_each(chain.parameters, [&](const Tensor& parameter) { parameter.copy_(at::where(broken, *was++, parameter)); });
  }

 private:
  using OfChain = Chain<T, Kernels>;

  // The states that a way through the stages has left.
  struct Walked {
    Field last, free, plus;

    const Field& of(Kept kept) const { return kept == Kept::last ? last : kept == Kept::free ? free : plus; }
    Ends ends(const Stages& stages) const { return {of(stages.earlier), of(stages.later), free}; }
  };

  // All stages of an op that learns. learn(stage, ends, number) follows step `number` of those that learn.
  template <class Learn>
  Walked walk(OfChain& chain, const LearnCall<T>& call, const Stages& stages, const Learn& learn) const {
    Walked walked{chain.start({}), {}, {}};
    int number = 0;
    for (int index = 0; index < stages.count; ++index) {
      const Stage& stage = stages.stage[index];
      const Nudge nudge{stage.beta, call.nudge.at, call.nudge.loss};
      walked.last = relax(chain, walked.of(stage.from), stage.steps, nudge, call.stop, index,
                          [&](const Field& from, const Field& to) {
                            if (stage.learns) learn(stage, {from, to, from}, number++);
                          });
      if (stage.stores == 0) store(chain, walked.last, call.free_states.data());
      if (stage.stores > 0)
        store(chain, walked.last, call.nudged_states.data() + (stage.stores - 1) * call.network.shape.layer_count());
      if (stage.keeps == Kept::free) walked.free = walked.last;
      if (stage.keeps == Kept::plus) walked.plus = walked.last;
    }
    return walked;
  }

  static void apply(const Blend<double>& blend, Tensor out, const Tensor& sum) {
    if (blend.fresh)
      out.copy_(sum).mul_(blend.scale);
    else if (blend.decay == 0)
      out.add_(sum, blend.scale);
    else
      out.add_((sum * blend.scale).sub_(out, blend.decay));  // rounded once by the size of `out`, not twice
  }

  // At most `steps` steps from a field; after_step(from, to) follows each. Phase number `phase` of the call. With a
  // tolerance the host waits for the device after every few steps, to know whether to go on.
  template <class AfterStep>
  Field relax(OfChain& chain, Field field, int steps, const Nudge& nudge, const Stop& stop, int phase,
              const AfterStep& after_step) const {
    int count = 0;
    for (bool stays = false; count < steps && !stays;) {
      const bool asks = stop.tolerance && (count + 1) % steps_per_check == 0;
      const Tensor moves = asks ? at::zeros({1}, options_.dtype(at::kInt)) : Tensor();
      const Field to = chain.step(field, nudge, limit_of<T>(stop.tolerance.value_or(0)), moves);
      after_step(field, to);
      field = to;
      ++count;
      stays = asks && moves.template item<int>() == 0;
    }
    tensor_on(stop.steps_used + phase, {1}, options_).fill_(count);
    return field;
  }
  Field relax(OfChain& chain, const Field& field, int steps, const Nudge& nudge, const Stop& stop, int phase) const {
    return relax(chain, field, steps, nudge, stop, phase, [](const Field&, const Field&) {});
  }

  template <class Body>
  static void for_each(const Parameters& parameters, const Body& body) {
    for (const Tensors* list : {&parameters.weights, &parameters.biases, &parameters.feedback})
      for (const Tensor& tensor : *list)
        if (tensor.defined()) body(tensor);
  }

  // Whether nothing may be stored, [1]; the op says so by the steps of its phases.
  Tensor say_if_broken(const OfChain& chain, const LearnCall<T>& call, const Stages& stages) const {
    const Tensor broken = chain.broken.to(at::kBool);
    tensor_on(call.stop.steps_used, {stages.count}, options_).masked_fill_(broken, -1);
    return broken;
  }

  static void store(const OfChain& chain, const Field& field, T* const* out) {
    for (size_t l = 0; l < field.state.size(); ++l) chain.wrap(out[l], field.state[l].sizes()).copy_(field.state[l]);
  }

  // The contrasts of all connections but a readout's into `to`, blended by blend_of(connection).
  template <class BlendOf>
  static void learn(const OfChain& chain, const LearnCall<T>& call, const Ends& ends, const BlendOf& blend_of,
                    const Parameters& to) {
    const Learns learns = learns_by(call.network.free_feedback, call.shared_update);
    for (int c = 0; c < call.network.shape.layer_count(); ++c) {
      const Blend<double> blend = blend_of(c);
      const bool has_feedback = call.network.free_feedback && c > 0, shares = has_feedback && learns == Learns::shared;
      Tensor of_weights = chain.contrast(c, Copy::weights, learns, ends), of_feedback = of_weights;
      if (has_feedback && !(shares && !chain.chooses_twice(c)))
        of_feedback = chain.contrast(c, Copy::feedback, learns, ends);
      if (shares) of_weights = of_feedback = (of_weights + of_feedback) / 2;
      apply(blend, to.weights[c], of_weights);
      if (has_feedback) apply(blend, to.feedback[c - 1], of_feedback);
      if (to.biases[c].defined()) apply(blend, to.biases[c], chain.bias_contrast(c, learns, ends));
    }
  }

  // The readout's contrast, if there is one, summed over the ends of the nudged phases.
  template <class BlendOf>
  static void learn_readout(const OfChain& chain, const LearnCall<T>& call, const Stages& stages, const Walked& walked,
                            const BlendOf& blend_of, const Parameters& to) {
    if (!call.network.shape.has_readout()) return;
    Tensor of_weights, of_bias;
    for (int phase = 0; phase < stages.nudged; ++phase) {
      const Field& end = phase + 1 < stages.nudged ? walked.plus : walked.last;
      const Tensor error = chain.error(end), sum = error.sum(0);
      chain.look(error);
      const Tensor product = chain.readout_contrast(error, end);
      of_weights = phase == 0 ? product : of_weights + product;
      of_bias = phase == 0 ? sum : of_bias + sum;
    }
    const Blend<double> blend = blend_of(call.network.shape.layer_count());
    apply(blend, to.weights.back(), of_weights);
    if (to.biases.back().defined()) apply(blend, to.biases.back(), of_bias);
  }

  const at::TensorOptions options_;
  const bool tf32_;
};

}  // namespace ceprop::aten
