// These plain structs describe a network and its phases to any kernel. No torch, no device code.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "gates.h"
#include "unit_math.h"

namespace ceprop {

// What runs a call: the fused kernels of a CPU; those of a GPU, teams of its blocks; torch's operators around the
// kernels of aten/; or the first of these that can.
enum class Engine { automatic, fused, teams, graph };
// To what the operands of products are rounded on a GPU; their sums stay exact.
enum class Precision { exact, tf32 };

enum class Pool { none, max, avg };

// This computes pool(conv2d(u, W, b)). The windows of the pooling lie side by side, and what is left at the far edges
// is dropped.
struct Convolution {
  std::array<int64_t, 2> kernel, stride, padding, window;  // height, width; a window of 1 x 1 without pooling
  Pool pool;

  int64_t places() const { return window[0] * window[1]; }  // in a window
};

struct MapShape {
  int64_t channels, height, width;

  int64_t units() const { return channels * height * width; }
};

// What joins two layers. A readout is outside the dynamics: what is above it has no states, only classes.
enum class Kind { dense, convolution, readout };
inline constexpr int from_input = -1;  // below a connection from the input

struct Connection {
  int below, above;  // layers; above a readout the number after the last one
  Kind kind;
  Convolution convolution;  // of that kind only
  int feedback = -1;        // where its V is among the feedback weights; -1: it has none, or feedback is tied
};

// A shape says which layers there are and how they are joined. No layer joins itself, and no connections form a ring. A
// dense connection takes a map's units channel by channel. All that end at a layer are convolutions, or none is.
struct NetworkShape {
  MapShape input;
  std::vector<MapShape> layers;         // with states; of a dense layer (n, 1, 1)
  std::vector<Connection> connections;  // a readout is the last one
  std::vector<std::vector<int>> turns;  // of a step, in order: layers that move together, by the newest states
  int output;                           // the layer that is nudged, or that the readout reads
  int64_t classes;                      // units of the output layer, or of the readout

  CEPROP_HOST int layer_count() const { return static_cast<int>(layers.size()); }
  CEPROP_HOST int connection_count() const { return static_cast<int>(connections.size()); }
  CEPROP_HOST int turn_count() const { return static_cast<int>(turns.size()); }
  CEPROP_HOST bool has_readout() const { return connections.back().kind == Kind::readout; }
  CEPROP_HOST const MapShape& below(int connection) const {
    const int layer = connections[connection].below;
    return layer == from_input ? input : layers[layer];
  }
  CEPROP_HOST MapShape above(int connection) const {
    if (connections[connection].kind == Kind::readout) return {classes, 1, 1};
    return layers[connections[connection].above];
  }
  CEPROP_HOST int64_t units_below(int connection) const { return below(connection).units(); }
  CEPROP_HOST int64_t units_above(int connection) const { return above(connection).units(); }
  // Whether the states of a layer, or the input, are [B, channels, height, width]; else they are [B, n].
  CEPROP_HOST bool is_map(int layer) const {
    for (const Connection& connection : connections)
      if (connection.kind == Kind::convolution && layer == (layer == from_input ? connection.below : connection.above))
        return true;
    return false;
  }
  CEPROP_HOST std::vector<int64_t> sizes(int layer, int64_t batch) const {
    const MapShape& map = layer == from_input ? input : layers[layer];
    if (is_map(layer)) return {batch, map.channels, map.height, map.width};
    return {batch, map.units()};
  }
  CEPROP_HOST bool is_convolution(int connection) const { return connections[connection].kind == Kind::convolution; }
  CEPROP_HOST bool has_convolutions() const {
    for (const Connection& connection : connections)
      if (connection.kind == Kind::convolution) return true;
    return false;
  }
  // Says any connection as a convolution: a dense one has a kernel that covers the map below it.
  CEPROP_HOST Convolution as_convolution(int connection) const {
    if (is_convolution(connection)) return connections[connection].convolution;
    return {{below(connection).height, below(connection).width}, {1, 1}, {0, 0}, {1, 1}, Pool::none};
  }
  CEPROP_HOST int64_t weight_count(int connection) const {
    if (!is_convolution(connection)) return units_above(connection) * units_below(connection);
    const auto& kernel = connections[connection].convolution.kernel;
    return above(connection).channels * below(connection).channels * kernel[0] * kernel[1];
  }
  // How often a connection's kernel is applied to a sample: once for each place of the map above, before a pooling.
  CEPROP_HOST int64_t position_count(int connection) const {
    const MapShape of = above(connection);
    return of.height * of.width * as_convolution(connection).places();
  }
};

// A network of any shape. Its tensors are dense and row-major.
template <class T>
struct Network {
  NetworkShape shape;
  std::vector<UnitRule> rules;  // one per layer
  Activation input_activation;  // energy: what is joined to the input sees rho(x)
  bool free_feedback;
  std::vector<T*> weights;   // by connection, [above, below], of a convolution [channels, channels below, kernel]
  std::vector<T*> biases;    // by connection, [above or its channels], or null for none
  std::vector<T*> feedback;  // V, like the weights; empty when tied
};

struct Nudge {
  double beta;
  NudgeAt at;
  Loss loss;
};

// The samples of a call.
template <class T>
struct Batch {
  int64_t size;
  const T* x;                       // [B, n_in]
  const T* target;                  // [B, classes], or null for a free phase, or where there are labels
  const int64_t* labels = nullptr;  // [B], classes in place of a target: of the teams of a GPU alone

  CEPROP_HOST bool nudges() const { return target || labels; }
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

// What both ops that learn are told: they run a free phase, then a phase with +beta and if symmetric one with -beta.
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

// Plain gradient descent with EP's estimate, as torch.optim.SGD does it:
//   g <- momentum g + (gradient + weight_decay p),   p <- p - lr g.
template <class T>
struct DescentCall : LearnCall<T> {
  bool accumulate;
  std::vector<double> lr;  // per connection
  double weight_decay, momentum;
  // g, like the parameters; all empty without momentum.
  std::vector<T*> weight_momenta, bias_momenta, feedback_momenta;
};

// How C-EP holds weights that move. The literal form moves them at every step. In low rank they stay constant until the
// phase ends, and products with B x B matrices add what they would have moved by.
enum class Form { literal, low_rank };

// The input's connection has a form of its own; all those between layers have one.
struct Forms {
  Form input, inner;
};

// A kernel that runs this call moves the network's weights, biases and feedback in place.
template <class T>
struct CepCall : LearnCall<T> {
  std::vector<double> lr;  // per connection
  double weight_decay;
  Forms forms;  // low_rank only where it is exact: see model/costs.h
};

}  // namespace ceprop
