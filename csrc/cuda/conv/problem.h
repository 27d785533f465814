// What the kernel of chains with convolutions is told. Every connection is a convolution there: a dense one has a
// kernel that covers the map below it. No torch, no device code.
#pragma once

#include "../problem.h"

namespace ceprop::cuda::conv {

inline constexpr int most_connections = most_layers + 1;  // a readout's too

// One connection, between maps. A map's numbers lie [channel][sample][y][x]: a channel's rows in one piece.
struct Link {
  int channels_below, height_below, width_below;
  int channels, height, width;  // above
  int kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x, window_y, window_x;
  Pool pool;
  bool dense;
  int taps;                  // of the kernel
  int depth;                 // weights into a channel: channels below times taps
  int pixels_below, pixels;  // of a map
  int window;                // places in a window of the pooling
  int positions;             // of the kernel in a map, those that no window has left out

  int slices;  // of the batch's positions, whose contrasts are summed up apart
};

struct Layout {
  int blocks;
  int pass;   // columns that a block works on at once
  int depth;  // rows of both operands that are in shared memory at once
};

// Where a row or a column of a product finds its numbers; see Operands.
struct alignas(16) Spot {
  int row, left, y, x;
};

template <class T>
struct Workspace {
  T* x;                                  // rho(x) in energy dynamics
  T* target;                             // [classes][batch]
  T* error;                              // [classes][batch]: logits, then beta (y - softmax)
  T* end_error[2];                       // [classes][batch]: y - softmax at the ends of the nudged phases
  T* state[state_buffers][most_layers];  // maps
  T* seen[state_buffers][most_layers];   // maps: rho(state) in energy dynamics, else the same memory
  T* drive[most_layers];                 // maps: F_l of what is below layer l
  // [channels][batch][positions]: maps above a pooling brought back to the places that the weights, or V, picked: what
  // a step's states are driven by (the first), or a contrast's earlier and later ones.
  T* unpooled[2][2][most_layers];
  T* partial[most_connections];       // [by W, by V][slice][weights]: contrasts
  Spot* taps[most_connections];       // [depth]: of a kernel, from above
  Spot* taps_down[most_connections];  // the same from below, channel above by channel above
  Spot* positions[most_connections];  // [batch * positions], window by window
  Spot* cells[most_connections];      // [batch * pixels below]; of a dense connection [batch]
  T* before;                          // C-EP: what its parameters were, one after the other
  int* settled;                       // [2][blocks]
  int* broken;                        // see sanity.cuh
};

template <class T>
struct Problem : Given<T> {
  Layout layout;
  Link links[most_connections];
  Workspace<T> workspace;
};

}  // namespace ceprop::cuda::conv
