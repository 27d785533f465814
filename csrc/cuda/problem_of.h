// The kernel's argument for a call: plain copies, and the workspace laid out. No torch, no CUDA.
#pragma once

#include <cstdint>

#include "launch_plan.h"

namespace ceprop::cuda {

inline bool has_energy(const std::vector<UnitRule>& rules) { return rules[0].dynamics == Dynamics::energy; }

// Of [batch][batch] in the workspace, C-EP's: the input's, and of inner updates in low rank two for each layer; see
// Workspace.
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
  return 1 + (call.forms.inner == Form::low_rank ? 2 * call.network.layers : 0);
}

template <class Call>
Shape shape_of(const Call& call, int64_t number_bytes) {
  const auto& network = call.network;
  return {network.widths,  network.readout, has_energy(network.rules), network.asynchronous,
          call.batch.size, number_bytes,    matrices_of(call)};
}

namespace filling {

template <class T>
void lay_out(Problem<T>& problem, bool energy, int matrices, void* memory) {
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
    for (int field = 0; field < fields; ++field) {
      w.state[field][l] = rows(problem.widths[l + 1]);
      w.seen[field][l] = energy ? rows(problem.widths[l + 1]) : w.state[field][l];
    }
  w.drive = rows(problem.widths[1]);
  w.sum = rows(problem.widths[1]);
  if (matrices > 0) w.gram = rows(problem.batch);
  for (int l = 0; 1 + 2 * l < matrices; ++l) {
    w.of_away[l] = rows(problem.batch);
    w.of_free[l] = rows(problem.batch);
  }
  w.settled = reinterpret_cast<int*>(next);
}

template <class T>
Problem<T> of_network(const Network<T>& network, const Batch<T>& batch, const Nudge& nudge, const Stop& stop, Op op,
                      int matrices, const Plan& plan, void* memory) {
  Problem<T> problem{};
  problem.op = op;
  problem.layout = plan.layout;
  problem.layers = network.layers;
  problem.batch = static_cast<int>(batch.size);
  problem.readout = network.readout;
  problem.free_feedback = network.free_feedback;
  problem.asynchronous = network.asynchronous;
  for (size_t i = 0; i < network.widths.size(); ++i) problem.widths[i] = static_cast<int>(network.widths[i]);
  std::copy(network.rules.begin(), network.rules.end(), problem.rules);
  problem.input_activation = network.input_activation;
  std::copy(network.weights.begin(), network.weights.end(), problem.weights);
  std::copy(network.biases.begin(), network.biases.end(), problem.biases);
  std::copy(network.feedback.begin(), network.feedback.end(), problem.feedback);
  problem.x = batch.x;
  problem.target = batch.target;
  problem.nudge = nudge;
  problem.tolerance = stop.tolerance.value_or(-1);
  problem.steps_used = stop.steps_used;
  lay_out(problem, has_energy(network.rules), matrices, memory);
  return problem;
}

template <class T>
Problem<T> of_learning(const LearnCall<T>& call, Op op, int matrices, const Plan& plan, void* memory) {
  Problem<T> problem = of_network(call.network, call.batch, call.nudge, call.stop, op, matrices, plan, memory);
  problem.free_steps = call.free_steps;
  problem.nudged_steps = call.nudged_steps;
  problem.symmetric = call.symmetric;
  problem.shared_update = call.shared_update;
  std::copy(call.free_states.begin(), call.free_states.end(), problem.free_states);
  for (size_t i = 0; i < call.nudged_states.size(); ++i)
    problem.nudged_states[i / call.network.layers][i % call.network.layers] = call.nudged_states[i];
  return problem;
}

}  // namespace filling

// `memory`: plan.workspace_bytes of the device's global memory, 256-byte aligned.
template <class T>
Problem<T> problem_of(const RelaxCall<T>& call, const Plan& plan, void* memory) {
  Problem<T> problem =
      filling::of_network(call.network, call.batch, call.nudge, call.stop, Op::relax, matrices_of(call), plan, memory);
  problem.free_steps = call.steps;
  std::copy(call.initial.begin(), call.initial.end(), problem.initial);
  std::copy(call.states.begin(), call.states.end(), problem.free_states);
  return problem;
}

template <class T>
Problem<T> problem_of(const EpCall<T>& call, const Plan& plan, void* memory) {
  Problem<T> problem = filling::of_learning(call, Op::ep_step, matrices_of(call), plan, memory);
  problem.accumulate = call.accumulate;
  std::copy(call.gradients.begin(), call.gradients.end(), problem.gradients);
  std::copy(call.bias_gradients.begin(), call.bias_gradients.end(), problem.bias_gradients);
  std::copy(call.feedback_gradients.begin(), call.feedback_gradients.end(), problem.feedback_gradients);
  return problem;
}

template <class T>
Problem<T> problem_of(const CepCall<T>& call, const Plan& plan, void* memory) {
  Problem<T> problem = filling::of_learning(call, Op::cep_step, matrices_of(call), plan, memory);
  problem.low_rank = call.forms.inner == Form::low_rank;
  std::copy(call.lr.begin(), call.lr.end(), problem.rate);
  problem.weight_decay = call.weight_decay;
  return problem;
}

}  // namespace ceprop::cuda
