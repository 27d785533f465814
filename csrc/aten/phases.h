// The three ops as sequences of steps of a graph.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <functional>
#include <utility>

#include "../model/largest.h"
#include "../model/stages.h"
#include "graph.h"
#include "tensor_on.h"

namespace ceprop::aten {

// While it lives, operators know nothing of autograd, and compute in their tensors' types whatever autocast says.
struct Plainly {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard below_autocast{c10::autocast_dispatch_keyset};
};

template <class T, class Kernels>
class Phases {
 public:
  // `options`: of the call's tensors. If `takes_whole_phases`, Kernels::relax() takes those where weights rest.
  // after_step() follows every step of the dynamics, or a whole phase, if there is one; by throwing it ends the call,
  // which then has changed no parameter.
  Phases(const at::TensorOptions& options, bool tf32, bool takes_whole_phases, std::function<void()> after_step = {})
      : options_(options), tf32_(tf32), takes_whole_phases_(takes_whole_phases), after_step_(std::move(after_step)) {}

  void run(const RelaxCall<T>& call) const {
    OfGraph graph(call.network, call.batch, options_, tf32_, largest_state(call));
    const Nudge nudge = call.batch.target ? call.nudge : Nudge{};
    const States states = relax(graph, graph.start(call.initial), call.steps, nudge, call.stop, 0);
    store(graph, states, call.states.data());
  }

  void run(const EpCall<T>& call) const {
    OfGraph graph(call.network, call.batch, options_, tf32_, largest_state(call));
    const Parameters gradients =
        graph.connections.wrap_all(call.gradients, call.bias_gradients, call.feedback_gradients);
    const auto by = [&](double divisor, bool fresh) {
      return [&call, divisor, fresh](int) { return gradient_blend<double>(divisor, call.batch.size, fresh); };
    };
    const Stages stages = stages_of(call);
    const Walked walked = walk(graph, call, stages, [&](const Stage& stage, const Ends& ends, int number) {
      learn(graph, call, ends, by(stage.divisor, number == 0), gradients);
    });
    if (!stages.steps_learn) {
      const Slopes slopes = graph.slopes_at(walked.free, call.gate);
      learn(graph, call, walked.ends(stages, slopes), by(stages.divisor, true), gradients);
    }
    learn_readout(graph, call, stages, walked, by(stages.nudged, true), gradients);
    const Tensor broken = say_if_broken(graph, call, stages);
    for_each(gradients, [&](const Tensor& gradient) { gradient.masked_fill_(broken, 0); });
  }

  // Copies of the parameters move, and become the network's at the end.
  void run(const CepCall<T>& call) const {
    OfGraph graph(call.network, call.batch, options_, tf32_, largest_state(call));
    const auto by = [&](double divisor) {
      return [&call, divisor](int c) {
        return continual_blend<double>(call.lr[c], call.weight_decay, divisor, call.batch.size);
      };
    };
    const Parameters given = graph.connections.parameters;
    Parameters& moving = graph.connections.parameters;
    for (Tensors* list : {&moving.weights, &moving.biases, &moving.feedback})
      for (Tensor& parameter : *list)
        if (parameter.defined()) parameter = parameter.clone();
    const Stages stages = stages_of(call);
    const Walked walked = walk(graph, call, stages, [&](const Stage& stage, const Ends& ends, int) {
      learn(graph, call, ends, by(stage.divisor), moving);
      graph.forget_input();
    });
    learn_readout(graph, call, stages, walked, by(stages.nudged), moving);
    const Tensor broken = say_if_broken(graph, call, stages);
    Tensors moved;
    for_each(moving, [&](const Tensor& parameter) { moved.push_back(parameter); });
    auto next = moved.begin();
    for_each(given, [&](const Tensor& parameter) { parameter.copy_(at::where(broken, parameter, *next++)); });
  }

 private:
  using OfGraph = Graph<T, Kernels>;

  // The states that a way through the stages has left.
  struct Walked {
    States last, free, plus;

    const States& of(Kept kept) const { return kept == Kept::last ? last : kept == Kept::free ? free : plus; }
    Ends ends(const Stages& stages, const Slopes& slopes) const {
      return {of(stages.earlier), of(stages.later), free, slopes};
    }
  };

  // All stages of an op that learns. learn(stage, ends, number) follows step `number` of those that learn.
  template <class Learn>
  Walked walk(OfGraph& graph, const LearnCall<T>& call, const Stages& stages, const Learn& learn) const {
    Walked walked{graph.start({}), {}, {}};
    const auto end = [&](const Stage& stage, const States& states) {
      walked.last = states;
      if (stage.stores == 0) store(graph, states, call.free_states.data());
      if (stage.stores > 0) store(graph, states, call.nudged_states.data() + (stage.stores - 1) * states.state.size());
      if (stage.keeps == Kept::free) walked.free = states;
      if (stage.keeps == Kept::plus) walked.plus = states;
    };
    int number = 0;
    for (int index = 0; index < stages.count; ++index) {
      const Stage& stage = stages.stage[index];
      const Nudge nudge{stage.beta, call.nudge.at, call.nudge.loss};
      if (stage.keeps == Kept::plus && nudges_both_ways_at_once(call, stages)) {
        const States ends = relax(graph, both_ways(walked.free), stage.steps, nudge, call.stop, index);
        end(stage, one_way(ends, 0));
        end(stages.stage[++index], one_way(ends, 1));
        continue;
      }
      const auto after = [&](const States& from, const States& to, const Slopes& slopes) {
        if (stage.learns) learn(stage, {from, to, from, slopes}, number++);
      };
      end(stage, relax(graph, walked.of(stage.from), stage.steps, nudge, call.stop, index, stage.learns,
                       stage.learns ? call.gate : Gate::none, after));
    }
    return walked;
  }

  // EP's nudged phases start from the same states with the same weights: as one batch they take half as many calls of a
  // library. With a tolerance each ends by itself.
  static bool nudges_both_ways_at_once(const LearnCall<T>& call, const Stages& stages) {
    const bool gains = Kernels::gains_by_batches || !call.network.shape.has_convolutions();
    return gains && stages.op == Op::ep_step && stages.nudged == 2 && !stages.steps_learn && !call.stop.tolerance;
  }

  static void apply(const Blend<double>& blend, Tensor out, const Tensor& sum) {
    if (blend.fresh)
      out.copy_(sum).mul_(blend.scale);
    else if (blend.decay == 0)
      out.add_(sum, blend.scale);
    else
      out.add_((sum * blend.scale).sub_(out, blend.decay));  // rounded once by the size of `out`, not twice
  }

  // At most `steps` steps; after(from, to, slopes) follows each. Phase number `phase` of the call, and the next one
  // where the states go both ways. With a tolerance the host waits for the device after every few steps, to know
  // whether to go on.
  template <class After>
  States relax(OfGraph& graph, States states, int steps, const Nudge& nudge, const Stop& stop, int phase, bool learns,
               Gate gate, const After& after) const {
    const bool whole = Kernels::takes_whole_phases && takes_whole_phases_ && !learns;
    const int at_once = !whole ? 1 : stop.tolerance ? steps_per_check : steps;
    const T limit = limit_of<T>(stop.tolerance.value_or(0));
    int count = 0;
    for (bool stays = false; count < steps && !stays;) {
      const int taken = std::min(at_once, steps - count);
      const bool asks = stop.tolerance && (count + taken) % steps_per_check == 0;
      const Tensor moves = asks ? at::zeros({1}, options_.dtype(at::kInt)) : Tensor();
      Slopes slopes;
      States to;
      if constexpr (Kernels::takes_whole_phases)
        if (whole) to = graph.whole_steps(states, taken, nudge, limit, moves);
      if (!whole) to = graph.step(states, nudge, limit, moves, gate, slopes);
      after(states, to, slopes);
      states = to;
      count += taken;
      stays = asks && moves.template item<int>() == 0;
      if (after_step_) after_step_();
    }
    tensor_on(stop.steps_used + phase, {states.both_ways ? 2 : 1}, options_).fill_(count);
    return states;
  }
  States relax(OfGraph& graph, const States& states, int steps, const Nudge& nudge, const Stop& stop, int phase) const {
    const auto nothing = [](const States&, const States&, const Slopes&) {};
    return relax(graph, states, steps, nudge, stop, phase, false, Gate::none, nothing);
  }

  template <class Body>
  static void for_each(const Parameters& parameters, const Body& body) {
    for (const Tensors* list : {&parameters.weights, &parameters.biases, &parameters.feedback})
      for (const Tensor& tensor : *list)
        if (tensor.defined()) body(tensor);
  }

  // Whether nothing may be stored, [1]; the op says so by the steps of its phases.
  Tensor say_if_broken(const OfGraph& graph, const LearnCall<T>& call, const Stages& stages) const {
    const Tensor broken = graph.broken.to(at::kBool);
    tensor_on(call.stop.steps_used, {stages.count}, options_).masked_fill_(broken, -1);
    return broken;
  }

  static void store(const OfGraph& graph, const States& states, T* const* out) {
    for (size_t l = 0; l < states.state.size(); ++l) graph.wrap(out[l], states.state[l].sizes()).copy_(states.state[l]);
  }

  // The contrasts of all connections but a readout's into `to`, blended by blend_of(connection).
  template <class BlendOf>
  static void learn(const OfGraph& graph, const LearnCall<T>& call, const Ends& ends, const BlendOf& blend_of,
                    const Parameters& to) {
    const Learns learns = learns_by(call.network.free_feedback, call.shared_update);
    for (int c = 0; c < graph.inner_count(); ++c) {
      const Blend<double> blend = blend_of(c);
      const int feedback = call.network.shape.connections[c].feedback;
      const bool has_feedback = feedback >= 0, shares = has_feedback && learns == Learns::shared;
      Tensor of_weights = graph.contrast(c, Copy::weights, learns, ends), of_feedback = of_weights;
      if (has_feedback && !(shares && !graph.connections.picks(c)))  // where both pick maxima of their own
        of_feedback = graph.contrast(c, Copy::feedback, learns, ends);
      if (shares) of_weights = of_feedback = (of_weights + of_feedback) / 2;
      apply(blend, to.weights[c], of_weights);
      if (has_feedback) apply(blend, to.feedback[feedback], of_feedback);
      if (to.biases[c].defined()) apply(blend, to.biases[c], graph.bias_contrast(c, learns, ends));
    }
  }

  // The readout's contrast, if there is one, summed over the ends of the nudged phases.
  template <class BlendOf>
  static void learn_readout(const OfGraph& graph, const LearnCall<T>& call, const Stages& stages, const Walked& walked,
                            const BlendOf& blend_of, const Parameters& to) {
    const int readout = graph.inner_count();
    if (static_cast<size_t>(readout) == to.weights.size()) return;
    Tensor of_weights, of_bias;
    for (int phase = 0; phase < stages.nudged; ++phase) {
      const States& end = phase + 1 < stages.nudged ? walked.plus : walked.last;
      const Tensor error = graph.error(call.nudge.loss, end), sum = error.sum(0);
      graph.look(error);
      const Tensor product = graph.readout_contrast(error, end);
      of_weights = phase == 0 ? product : of_weights + product;
      of_bias = phase == 0 ? sum : of_bias + sum;
    }
    const Blend<double> blend = blend_of(readout);
    apply(blend, to.weights.back(), of_weights);
    if (to.biases.back().defined()) apply(blend, to.biases.back(), of_bias);
  }

  const Plainly plainly_;
  const at::TensorOptions options_;
  const bool tf32_, takes_whole_phases_;
  const std::function<void()> after_step_;
};

}  // namespace ceprop::aten
