// What a kernel is told: the call, the layout and the memory, as one plain argument. No torch, no device code.
#pragma once

#include "../../model/stages.h"
#include "layout.h"

namespace ceprop::cuda::teams {

template <class T>
struct Problem {
  Stages stages;
  Learns learns;
  Gate gate;  // of steps that learn
  int layers, batch;
  bool free_feedback, asynchronous;
  int widths[most_layers + 1];
  UnitRule rules[most_layers];
  Activation input_activation;
  T* weights[most_layers];
  T* biases[most_layers];
  T* feedback[most_layers];
  const T* x;
  const T* target;        // null: none, or labels
  const int64_t* labels;  // [B]; null: none, or a target

  Nudge nudge;
  T limit;  // of how far units move in a phase that goes on; negative: none
  int64_t* steps_used;
  double rate[most_layers], weight_decay;
  T largest;  // of states, inputs and targets, see model/largest.h

  const T* initial[most_layers];  // null: zeros
  T* free_states[most_layers];    // of relax: the states
  T* nudged_states[2][most_layers];
  T* gradients[most_layers];
  T* bias_gradients[most_layers];
  T* feedback_gradients[most_layers];

  Layout layout;   // while weights rest
  Layout moving;   // C-EP: of the one team that has all samples, while they move
  int* broken;     // see sanity.cuh
  int* settled;    // [2][most_blocks], see settling.cuh
  char* exchange;  // a grid's buffers
  T* gram;         // [B][B]: x x^T, and 1 for a bias
  T* sums;         // [B][n_0]: C-EP moves the input's weights by their product with x; before that, the input's drive
};

}  // namespace ceprop::cuda::teams
