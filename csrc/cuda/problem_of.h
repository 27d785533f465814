// The kernel's argument for a call: plain copies, and the workspace laid out. No torch, no CUDA.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../model/largest.h"
#include "launch_plan.h"

namespace ceprop::cuda {

inline bool has_energy(const std::vector<UnitRule>& rules) { return rules[0].dynamics == Dynamics::energy; }

// How many [batch][batch] matrices the workspace has: C-EP's for the input, and two for each layer where the inner
// updates are in low rank; see Workspace.
template <class T>
int matrices_of(const LearnCall<T>&) {
  return 0;
}
template <class T>
int matrices_of(const RelaxCall<T>&) {
  return 0;
}
template <class T>
int matrices_of(const CepCall<T>& call) {
  return 1 + (call.forms.inner == Form::low_rank ? 2 * call.network.shape.layer_count() : 0);
}

// Parameters that may move before the end: C-EP's biases, and inner weights whose update is literal.
template <class T>
int64_t moving(const LearnCall<T>&) {
  return 0;
}
template <class T>
int64_t moving(const RelaxCall<T>&) {
  return 0;
}
template <class T>
int64_t moving(const CepCall<T>& call) {
  const Network<T>& network = call.network;
  int64_t numbers = 0;
  for (int l = 0; l < network.shape.layer_count(); ++l) {
    if (network.biases[l]) numbers += network.shape.units_above(l);
    if (l > 0 && call.forms.inner == Form::literal)
      numbers += (network.free_feedback ? 2 : 1) * network.shape.weight_count(l);
  }
  return numbers;
}

template <class Call>
Shape shape_of(const Call& call, int64_t number_bytes) {
  const auto& network = call.network;
  return {network.shape, has_energy(network.rules), call.batch.size, number_bytes, matrices_of(call), moving(call)};
}

namespace filling {

template <class T>
void lay_out(Problem<T>& problem, bool energy, int matrices, int64_t moving, void* memory) {
  T* next = static_cast<T*>(memory);
  const auto rows = [&](int64_t count) {
    T* begin = next;
    next += count * problem.layout.columns;
    return begin;
  };
  Workspace<T>& w = problem.workspace;
  const int classes = problem.widths[problem.layers + problem.readout];
  w.x = rows(problem.widths[0]);
  for (T** of_classes : {&w.target, &w.error, &w.end_error[0], &w.end_error[1]}) *of_classes = rows(classes);
  for (int l = 0; l < problem.layers; ++l)
    for (int buffer = 0; buffer < state_buffers; ++buffer) {
      w.state[buffer][l] = rows(problem.widths[l + 1]);
      w.seen[buffer][l] = energy ? rows(problem.widths[l + 1]) : w.state[buffer][l];
    }
  w.drive = rows(problem.widths[1]);
  w.sum = rows(problem.widths[1]);
  if (matrices > 0) w.gram = rows(problem.batch);
  for (int l = 0; 1 + 2 * l < matrices; ++l) {
    w.of_away[l] = rows(problem.batch);
    w.of_free[l] = rows(problem.batch);
  }
  w.before = next;
  w.settled = reinterpret_cast<int*>(next + moving);
  w.broken = w.settled + 2 * most_blocks;
}

template <class T>
void give_network(Given<T>& given, const Network<T>& network, const Batch<T>& batch, const Nudge& nudge,
                  const Stop& stop) {
  const NetworkShape& shape = network.shape;
  given.layers = shape.layer_count();
  given.batch = static_cast<int>(batch.size);
  given.readout = shape.has_readout();
  given.free_feedback = network.free_feedback;
  given.asynchronous = shape.turn_count() == 2;
  given.widths[0] = static_cast<int>(shape.input.units());
  for (int c = 0; c < shape.connection_count(); ++c) given.widths[c + 1] = static_cast<int>(shape.units_above(c));
  std::copy(network.rules.begin(), network.rules.end(), given.rules);
  given.input_activation = network.input_activation;
  std::copy(network.weights.begin(), network.weights.end(), given.weights);
  std::copy(network.biases.begin(), network.biases.end(), given.biases);
  std::copy(network.feedback.begin(), network.feedback.end(), given.feedback);
  given.x = batch.x;
  given.target = batch.target;
  given.nudge = nudge;
  given.limit = stop.tolerance ? limit_of<T>(*stop.tolerance) : T(-1);
  given.steps_used = stop.steps_used;
}

template <class T>
void give_learning(Given<T>& given, const LearnCall<T>& call) {
  given.learns = learns_by(call.network.free_feedback, call.shared_update);
  give_network(given, call.network, call.batch, call.nudge, call.stop);
  std::copy(call.free_states.begin(), call.free_states.end(), given.free_states);
  for (size_t i = 0; i < call.nudged_states.size(); ++i)
    given.nudged_states[i / given.layers][i % given.layers] = call.nudged_states[i];
}

}  // namespace filling

template <class T>
void give(Given<T>& given, const RelaxCall<T>& call) {
  given.stages = stages_of(call);
  given.largest = largest_state(call);
  filling::give_network(given, call.network, call.batch, call.nudge, call.stop);
  std::copy(call.initial.begin(), call.initial.end(), given.initial);
  std::copy(call.states.begin(), call.states.end(), given.free_states);
}

template <class T>
void give(Given<T>& given, const EpCall<T>& call) {
  given.stages = stages_of(call);
  filling::give_learning(given, call);
  given.largest = largest_state(call);
  std::copy(call.gradients.begin(), call.gradients.end(), given.gradients);
  std::copy(call.bias_gradients.begin(), call.bias_gradients.end(), given.bias_gradients);
  std::copy(call.feedback_gradients.begin(), call.feedback_gradients.end(), given.feedback_gradients);
}

template <class T>
void give(Given<T>& given, const CepCall<T>& call) {
  given.stages = stages_of(call);
  filling::give_learning(given, call);
  given.largest = largest_state(call);
  given.low_rank = call.forms.inner == Form::low_rank;
  std::copy(call.lr.begin(), call.lr.end(), given.rate);
  given.weight_decay = call.weight_decay;
}

// `memory`: plan.workspace_bytes of the device's global memory, 256-byte aligned.
template <class Call>
auto problem_of(const Call& call, const Plan& plan, void* memory) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(call.batch.x)>>;
  Problem<T> problem{};
  give(problem, call);
  problem.layout = plan.layout;
  filling::lay_out(problem, has_energy(call.network.rules), matrices_of(call), moving(call), memory);
  return problem;
}

}  // namespace ceprop::cuda
