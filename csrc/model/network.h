// Plain structs that describe a network and its phases to any kernel. No torch, no device code.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "gates.h"
#include "unit_math.h"

namespace ceprop {

enum class Engine { automatic, launch, graph };  // on a GPU: as planned, one launch, calls of a library in a graph
enum class Precision { exact, tf32, bf16 };      // of the products' operands on a GPU; their sums stay exact

enum class Pool { none, max, avg };

// pool(conv2d(u, W, b)); windows of the pooling lie side by side, what is left at the far edges is dropped.
struct Convolution {
  std::array<int64_t, 2> kernel, stride, padding, window;  // height, width; a window of 1 x 1 without pooling
  Pool pool;

  int64_t places() const { return window[0] * window[1]; }  // in a window
};

struct MapShape {
  int64_t channels, height, width;

  int64_t units() const { return channels * height * width; }
};

// A chain of layers. Connection l joins width n[l] (n[0]: the input) to width n[l + 1]; the first ones may be
// convolutions, between maps; a dense connection takes a map's units channel by channel. Tensors are dense and
// row-major. With a readout the last weight and bias are R and c, which read layer `layers - 1` outside the dynamics.
template <class T>
struct Network {
  int layers;  // with states
  bool readout;
  bool free_feedback;
  bool asynchronous;            // a step moves even layers, then odd ones from the newest states; else all at once
  std::vector<int64_t> widths;  // n_in, n_0, ..., n_{L-1}, and the classes of a readout: units
  std::vector<Convolution> convolutions;  // how connections 0, 1, ... are made; the others are dense
  std::vector<MapShape> maps;             // like the widths; a dense layer's is (n, 1, 1)
  std::vector<UnitRule> rules;            // one per layer
  Activation input_activation;            // energy: layer 0 sees rho(x)
  std::vector<T*> weights;                // [n[l + 1], n[l]], of a convolution [channels, channels below, kernel]
  std::vector<T*> biases;                 // [n[l + 1] or channels], or null for none
  std::vector<T*> feedback;               // V[1], V[2], ... like the weights; empty when tied

  int64_t classes() const { return widths.back(); }
};

struct Nudge {
  double beta;
  NudgeAt at;
  Loss loss;
};

// What a batch is, whatever is done with it.
template <class T>
struct Batch {
  int64_t size;
  const T* x;       // [B, n_in]
  const T* target;  // [B, classes], or null for a free phase
};

// How long phases last. With a tolerance one ends as soon as, after a multiple of `steps_per_check` steps, no unit of
// any sample has moved by more than that in the last step: looking costs a pass over the states, and a barrier.
struct Stop {
  std::optional<double> tolerance;
  int64_t* steps_used;  // out, of every phase in turn; of learning -1 each where nothing was stored, see cpu/sanity.h
  bool (*interrupted)() =
      nullptr;  // asked by the calling thread now and then; true ends the call, which stores nothing
};
inline constexpr int steps_per_check = 4;

template <class T>
struct RelaxCall {
  Network<T> network;
  Batch<T> batch;
  Nudge nudge;
  int steps;
  Stop stop;
  std::vector<const T*> initial;  // [B, n_l] per layer; empty: zeros
  std::vector<T*> states;         // out, [B, n_l] per layer
};

// What the steps of learning share: a free phase, then a phase with +beta and if symmetric one with -beta.
template <class T>
struct LearnCall {
  Network<T> network;
  Batch<T> batch;
  Nudge nudge;
  int free_steps;
  int nudged_steps;
  Stop stop;  // symmetric C-EP: the return between its nudged phases is a phase as well
  bool symmetric;
  bool shared_update;
  Gate gate = Gate::none;         // others only of a vector field's own contrast
  std::vector<T*> free_states;    // out, [B, n_l] per layer
  std::vector<T*> nudged_states;  // out, [B, n_l] per layer and phase
};

template <class T>
struct EpCall : LearnCall<T> {
  bool accumulate;                     // sum the contrasts of consecutive steps
  std::vector<T*> gradients;           // out, like the weights
  std::vector<T*> bias_gradients;      // out, or null
  std::vector<T*> feedback_gradients;  // out, like the feedback
};

// How C-EP's moving weights are held: moved at every step, or kept constant and what has moved added by products with B
// x B matrices, until the phase ends.
enum class Form { literal, low_rank };

// Of the input's connection, and of those between layers.
struct Forms {
  Form input, inner;
};

// Moves the network's weights, biases and feedback in place.
template <class T>
struct CepCall : LearnCall<T> {
  std::vector<double> lr;  // per connection
  double weight_decay;
  Forms forms;  // low_rank only where it is exact: see model/costs.h
};

}  // namespace ceprop
