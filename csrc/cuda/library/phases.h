// The three ops as sequences of steps of a chain.
#pragma once

#include "../../largest.h"
#include "chain.h"
#include "tensor_on.h"

namespace ceprop::cuda::library {

template <class T, class Kernels>
class Phases {
 public:
  Phases(const at::TensorOptions& options, bool tf32) : options_(options), tf32_(tf32) {}

  void run(const RelaxCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const Nudge nudge = call.batch.target ? call.nudge : none;
    store(chain, relax(chain, chain.start(call.initial), call.steps, nudge, call.stop, 0), call.states.data());
  }

  void run(const EpCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const Parameters gradients = chain.wrap_all(call.gradients, call.bias_gradients, call.feedback_gradients);
    // Tied and shared, the contrasts of consecutive steps telescope to the one between the ends.
    const bool accumulates = call.accumulate && call.network.free_feedback && !call.shared_update;
    const auto minus_over = [&](double divisor) { return -1.0 / (divisor * static_cast<double>(call.batch.size)); };
    const double divisor = call.nudge.beta * phases_of(call);
    const Field free = run_free(chain, call);
    Field ends[2];
    bool fresh = true;
    for (int phase = 0; phase < phases_of(call); ++phase) {
      const Nudge nudge = phase == 0 ? call.nudge : reversed(call.nudge);
      const double scale = minus_over(phase == 0 ? divisor : -divisor);
      ends[phase] =
          relax(chain, free, call.nudged_steps, nudge, call.stop, 1 + phase, [&](const Field& from, const Field& to) {
            if (accumulates)
              learn(chain, call, {from, to, from}, [&](int) { return Blend{0, scale, fresh}; }, gradients);
            fresh = false;
          });
      store(chain, ends[phase], call.nudged_states.data() + phase * call.network.layers);
    }
    if (!accumulates)
      learn(
          chain, call, call.symmetric ? Between{ends[1], ends[0], free} : Between{free, ends[0], free},
          [&](int) { return Blend{0, minus_over(divisor), true}; }, gradients);
    learn_readout(chain, call, ends, {0, minus_over(phases_of(call)), true}, gradients);
    const Tensor broken = say_if_broken(chain, call, 1 + phases_of(call));
    for_each(gradients, [&](const Tensor& gradient) { gradient.masked_fill_(broken, 0); });
  }

  void run(const CepCall<T>& call) const {
    OfChain chain(call.network, call.batch, options_, tf32_, largest_state(call));
    const auto blend = [&](int c, double divisor) {
      return Blend{call.lr[c] * call.weight_decay, call.lr[c] / (divisor * static_cast<double>(call.batch.size)),
                   false};
    };
    Tensors before;
    for_each(chain.parameters, [&](const Tensor& parameter) { before.push_back(parameter.clone()); });
    Field field = run_free(chain, call), ends[2];
    int number = 0;
    for (int phase = 0; phase < phases_of(call); ++phase) {
      const Nudge nudge = phase == 0 ? call.nudge : reversed(call.nudge);
      if (phase == 1) field = relax(chain, field, call.nudged_steps, none, call.stop, ++number);
      field =
          relax(chain, field, call.nudged_steps, nudge, call.stop, ++number, [&](const Field& from, const Field& to) {
            const double divisor = nudge.beta * phases_of(call);
            learn(chain, call, {from, to, from}, [&](int c) { return blend(c, divisor); }, chain.parameters);
            chain.forget_input();
          });
      store(chain, field, call.nudged_states.data() + phase * call.network.layers);
      ends[phase] = field;
    }
    learn_readout(chain, call, ends, blend(call.network.layers, phases_of(call)), chain.parameters);
    const Tensor broken = say_if_broken(chain, call, 2 * phases_of(call));
    auto was = before.begin();
    for_each(chain.parameters, [&](const Tensor& parameter) { parameter.copy_(at::where(broken, *was++, parameter)); });
  }

 private:
  using OfChain = Chain<T, Kernels>;
  static constexpr Nudge none{};

  // How a sum enters a number: out = out - decay out + scale sum; fresh: out = scale sum.
  struct Blend {
    double decay, scale;
    bool fresh;

    void operator()(Tensor out, const Tensor& sum) const {
      if (fresh)
        out.copy_(sum).mul_(scale);
      else if (decay == 0)
        out.add_(sum, scale);
      else
        out.add_((sum * scale).sub_(out, decay));  // rounded once by the size of `out`, not twice
    }
  };

  static int phases_of(const LearnCall<T>& call) { return call.symmetric ? 2 : 1; }
  static Nudge reversed(const Nudge& nudge) { return {-nudge.beta, nudge.at, nudge.loss}; }

  // At most `steps` steps from a field; after_step(from, to) follows each. Phase number `phase` of the call. With a
  // tolerance the host waits for the device after every few steps, to know whether to go on.
  template <class AfterStep>
  Field relax(OfChain& chain, Field field, int steps, const Nudge& nudge, const Stop& stop, int phase,
              const AfterStep& after_step) const {
    int count = 0;
    for (bool stays = false; count < steps && !stays;) {
      const bool asks = stop.tolerance && (count + 1) % steps_per_check == 0;
      const Tensor moves = asks ? at::zeros({1}, options_.dtype(at::kInt)) : Tensor();
      const Field to = chain.step(field, nudge, stop.tolerance.value_or(0), moves);
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

  Field run_free(OfChain& chain, const LearnCall<T>& call) const {
    const Field free = relax(chain, chain.start({}), call.free_steps, none, call.stop, 0);
    store(chain, free, call.free_states.data());
    return free;
  }

  template <class Body>
  static void for_each(const Parameters& parameters, const Body& body) {
    for (const Tensors* list : {&parameters.weights, &parameters.biases, &parameters.feedback})
      for (const Tensor& tensor : *list)
        if (tensor.defined()) body(tensor);
  }

  // Whether nothing may be stored, [1]; the op says so by the steps of its phases.
  Tensor say_if_broken(const OfChain& chain, const LearnCall<T>& call, int phases) const {
    const Tensor broken = chain.broken.to(at::kBool);
    tensor_on(call.stop.steps_used, {phases}, options_).masked_fill_(broken, -1);
    return broken;
  }

  static void store(const OfChain& chain, const Field& field, T* const* out) {
    for (size_t l = 0; l < field.state.size(); ++l) chain.wrap(out[l], field.state[l].sizes()).copy_(field.state[l]);
  }

  // The contrasts of all connections but a readout's into `to`, blended by blend_of(connection).
  template <class BlendOf>
  static void learn(const OfChain& chain, const LearnCall<T>& call, const Between& between, const BlendOf& blend_of,
                    const Parameters& to) {
    for (int c = 0; c < call.network.layers; ++c) {
      const Blend blend = blend_of(c);
      const bool has_feedback = call.network.free_feedback && c > 0, shares = has_feedback && call.shared_update;
      Tensor of_weights = chain.contrast(c, false, call.shared_update, between), of_feedback = of_weights;
      if (has_feedback && !(shares && !chain.chooses_twice(c)))
        of_feedback = chain.contrast(c, true, call.shared_update, between);
      if (shares) of_weights = of_feedback = (of_weights + of_feedback) / 2;
      blend(to.weights[c], of_weights);
      if (has_feedback) blend(to.feedback[c - 1], of_feedback);
      if (to.biases[c].defined()) blend(to.biases[c], chain.bias_contrast(c, call.shared_update, between));
    }
  }

  // The readout's contrast, if there is one, summed over the ends of the phases.
  static void learn_readout(const OfChain& chain, const LearnCall<T>& call, const Field* ends, const Blend& blend,
                            const Parameters& to) {
    if (!call.network.readout) return;
    Tensor of_weights, of_bias;
    for (int phase = 0; phase < phases_of(call); ++phase) {
      const Tensor error = chain.softmax_error(ends[phase]), sum = error.sum(0);
      chain.look(error);
      const Tensor product = chain.readout_contrast(error, ends[phase]);
      of_weights = phase == 0 ? product : of_weights + product;
      of_bias = phase == 0 ? sum : of_bias + sum;
    }
    blend(to.weights.back(), of_weights);
    if (to.biases.back().defined()) blend(to.biases.back(), of_bias);
  }

  const at::TensorOptions options_;
  const bool tf32_;
};

}  // namespace ceprop::cuda::library
