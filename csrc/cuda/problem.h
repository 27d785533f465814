// What a kernel is told: the call, the plan and the memory, as one plain argument. No torch, no device code.
#pragma once

#include <cstdint>

#include "../model/stages.h"

namespace ceprop::cuda {

// What one kernel argument has room for.
inline constexpr int most_layers = 8, most_blocks = 256, most_cluster_tiles = 256;

// A block owns tiles of this many units.
inline constexpr int tile_units = 16;
inline constexpr int tile_others = 64;  // of the other layer, in a tile of a contrast
inline constexpr int block_threads = 256;

// Numbers after every row of a tile that tensor cores read: they read 8 rows at once, which so lie in different banks.
inline constexpr int tensor_padding = 8;

// Where a step's work lies and how it is cut; see launch_plan.h, which fills it in.
struct Layout {
  int blocks;
  bool resident;    // the weights between layers stay in shared memory, both copies, for the whole call
  int columns;      // of memory for the samples of a unit: the batch, padded
  int pass;         // samples of them that a block works on at once
  int depth;        // neighbours whose states are in shared memory at once
  int unit_states;  // numbers of a unit's states in a cluster: [state, seen][buffer][columns], 7 packs for the banks
  // The tiles of all layers in a row, those of half 0 first: block b has [first[half][b], first[half][b + 1]).
  uint16_t first[2][most_blocks + 1];
  // In a cluster: the first tile of each layer, numbered through both halves; which block has a tile, and as which of
  // its own.
  uint16_t first_tile[most_layers];
  uint8_t owner[most_cluster_tiles], slot[most_cluster_tiles];
};

// Numbers in global memory. Rows of `columns` samples each, the padding zero: a unit's states lie side by side.
template <class T>
struct Workspace {
  T* x;             // [n_in], rho(x) in energy dynamics
  T* target;        // [classes]
  T* error;         // [classes]: logits, then beta (y - softmax)
  T* end_error[2];  // [classes]: y - softmax at the ends of the nudged phases, by which a readout learns
  T* state[state_buffers][most_layers];  // [n_l]
  T* seen[state_buffers][most_layers];   // [n_l]: rho(state) in energy dynamics, else the same memory
  T* drive;                              // [n_0]: what reaches layer 0 from the input, bias included
  T* sum;                                // [n_0]: C-EP's updates of W[0] are its product with the input
  T* gram;                               // [batch]: x x^T + 1
  T* of_away[most_layers];               // [batch]: C-EP in low rank, see cpu/dense/low_rank_update.h
  T* of_free[most_layers];               // [batch]
  T* before;                             // C-EP: what parameters that move in place were, one after the other
  int* settled;                          // [2][blocks]
  int* broken;                           // see sanity.cuh
};

// What is asked for, whatever the kernel: the call, as plain copies.
template <class T>
struct Given {
  Stages stages;
  Learns learns;
  int layers, batch;
  bool readout, free_feedback, asynchronous;
  int widths[most_layers + 2];
  UnitRule rules[most_layers];
  Activation input_activation;
  T* weights[most_layers + 1];
  T* biases[most_layers + 1];
  T* feedback[most_layers];
  const T* x;
  const T* target;

  Nudge nudge;
  T limit;  // of how far units move in a phase that goes on; negative: none
  int64_t* steps_used;
  bool low_rank;  // C-EP's inner updates
  double rate[most_layers + 1], weight_decay;
  T largest;  // of states, inputs and targets, see model/largest.h

  const T* initial[most_layers];  // null: zeros
  T* free_states[most_layers];    // of relax: the states
  T* nudged_states[2][most_layers];
  T* gradients[most_layers + 1];
  T* bias_gradients[most_layers + 1];
  T* feedback_gradients[most_layers];
};

template <class T>
struct Problem : Given<T> {
  Layout layout;
  Workspace<T> workspace;
};

}  // namespace ceprop::cuda
