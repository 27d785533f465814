// What the kernel is told: the phase and the layout, as one plain argument. No torch, no device code.
#pragma once

#include "../../aten/whole_phase.h"
#include "layout.h"

namespace ceprop::cuda::maps {

template <class T>
struct Problem {
  int batch;  // samples from there on are pulled the other way
  int steps;
  UnitRule rules[most_layers];
  const T* weights[most_layers];  // of joints
  const T* biases[most_layers];
  const T* drive;   // [samples, n_0]
  const T* target;  // [batch, classes]
  T beta;           // of the nudge; 0: none
  NudgeAt at;
  Loss loss;
  const T* state[most_layers];  // [samples, n_l]
  const T* seen[most_layers];
  T* next[most_layers];
  T* next_seen[most_layers];  // null: the states themselves
  T limit;
  int* moves;
  T largest;
  int* broken;
  Layout layout;
};

template <class T>
Problem<T> problem_of(const aten::WholePhase<T>& phase, const Layout& layout) {
  Problem<T> problem{};
  problem.batch = static_cast<int>(phase.batch);
  problem.steps = phase.steps;
  problem.drive = phase.drive;
  problem.target = phase.target;
  problem.beta = static_cast<T>(phase.nudge.beta);
  problem.at = phase.nudge.at;
  problem.loss = phase.nudge.loss;
  for (int l = 0; l < layout.layers; ++l) {
    problem.rules[l] = phase.network.rules[l];
    problem.weights[l] = phase.weights[l];
    problem.biases[l] = phase.biases[l];
    problem.state[l] = phase.state[l];
    problem.seen[l] = phase.seen[l];
    problem.next[l] = phase.next[l];
    problem.next_seen[l] = phase.next_seen[l];
  }
  problem.limit = phase.limit;
  problem.moves = phase.moves;
  problem.largest = phase.largest;
  problem.broken = phase.broken;
  problem.layout = layout;
  return problem;
}

}  // namespace ceprop::cuda::maps
