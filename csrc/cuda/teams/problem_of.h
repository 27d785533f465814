// The kernel's argument for a call: plain copies, and the workspace laid out. No torch, no CUDA.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../../model/largest.h"
#include "plan.h"
#include "problem.h"

namespace ceprop::cuda::teams {

namespace filling {

template <class T>
void give_network(Problem<T>& problem, const Network<T>& network, const Batch<T>& batch, const Nudge& nudge,
                  const Stop& stop) {
  const NetworkShape& shape = network.shape;
  problem.layers = shape.layer_count();
  problem.batch = static_cast<int>(batch.size);
  problem.free_feedback = network.free_feedback;
  problem.asynchronous = shape.turn_count() == 2;
  problem.widths[0] = static_cast<int>(shape.input.units());
  for (int c = 0; c < shape.connection_count(); ++c) problem.widths[c + 1] = static_cast<int>(shape.units_above(c));
  std::copy(network.rules.begin(), network.rules.end(), problem.rules);
  problem.input_activation = network.input_activation;
  std::copy(network.weights.begin(), network.weights.end(), problem.weights);
  std::copy(network.biases.begin(), network.biases.end(), problem.biases);
  std::copy(network.feedback.begin(), network.feedback.end(), problem.feedback);
  problem.x = batch.x;
  problem.target = batch.target;
  problem.labels = batch.labels;
  problem.nudge = nudge;
  problem.limit = stop.tolerance ? limit_of<T>(*stop.tolerance) : T(-1);
  problem.steps_used = stop.steps_used;
}

template <class T>
void give_learning(Problem<T>& problem, const LearnCall<T>& call) {
  problem.learns = learns_by(call.network.free_feedback, call.shared_update);
  give_network(problem, call.network, call.batch, call.nudge, call.stop);
  std::copy(call.free_states.begin(), call.free_states.end(), problem.free_states);
  for (size_t i = 0; i < call.nudged_states.size(); ++i)
    problem.nudged_states[i / problem.layers][i % problem.layers] = call.nudged_states[i];
}

}  // namespace filling

template <class T>
void give(Problem<T>& problem, const RelaxCall<T>& call) {
  filling::give_network(problem, call.network, call.batch, call.nudge, call.stop);
  std::copy(call.initial.begin(), call.initial.end(), problem.initial);
  std::copy(call.states.begin(), call.states.end(), problem.free_states);
}

template <class T>
void give(Problem<T>& problem, const EpCall<T>& call) {
  filling::give_learning(problem, call);
  problem.gate = call.gate;
  std::fill(problem.rate, problem.rate + problem.layers, -1.0);  // a gradient is minus what weights would move by
  std::copy(call.gradients.begin(), call.gradients.end(), problem.gradients);
  std::copy(call.bias_gradients.begin(), call.bias_gradients.end(), problem.bias_gradients);
  std::copy(call.feedback_gradients.begin(), call.feedback_gradients.end(), problem.feedback_gradients);
}

template <class T>
void give(Problem<T>& problem, const CepCall<T>& call) {
  filling::give_learning(problem, call);
  problem.gate = call.gate;
  std::copy(call.lr.begin(), call.lr.end(), problem.rate);
  problem.weight_decay = call.weight_decay;
}

// Returns the kernel's argument; `workspace` has plan.workspace_bytes of the device's memory.
template <class Call>
auto problem_of(const Call& call, const Plan& plan, void* workspace) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  Problem<T> problem{};
  problem.stages = stages_of(call);
  problem.largest = largest_state(call);
  give(problem, call);
  problem.layout = plan.layout;
  problem.moving = plan.moving;
  auto* const words = static_cast<int*>(workspace);
  problem.broken = words;
  problem.settled = words + 4;
  problem.exchange = reinterpret_cast<char*>(words + words_of_workspace);
  problem.gram = reinterpret_cast<T*>(problem.exchange + plan.moving.global_bytes());
  problem.sums = problem.gram + call.batch.size * call.batch.size;
  return problem;
}

}  // namespace ceprop::cuda::teams
