// What a call reads and writes, and what tells it from others. No torch, no CUDA.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../model/network.h"

namespace ceprop::aten {

// body(pointer, count) for every array that belongs to this call alone; parameters do not. Pointers may be changed.
template <class T, class Body>
void for_each_input(RelaxCall<T>& call, const Body& body) {
  const NetworkShape& shape = call.network.shape;
  body(call.batch.x, call.batch.size * shape.input.units());
  if (call.batch.target) body(call.batch.target, call.batch.size * shape.classes);
  for (size_t l = 0; l < call.initial.size(); ++l) body(call.initial[l], call.batch.size * shape.layers[l].units());
}
template <class T, class Body>
void for_each_input(LearnCall<T>& call, const Body& body) {
  body(call.batch.x, call.batch.size * call.network.shape.input.units());
  body(call.batch.target, call.batch.size * call.network.shape.classes);
}

template <class T, class Body>
void for_each_state(const Network<T>& network, int64_t batch, std::vector<T*>& states, const Body& body) {
  const std::vector<MapShape>& layers = network.shape.layers;
  for (size_t i = 0; i < states.size(); ++i) body(states[i], batch * layers[i % layers.size()].units());
}
template <class T, class Body>
void for_each_output(RelaxCall<T>& call, const Body& body) {
  body(call.stop.steps_used, int64_t(1));
  for_each_state(call.network, call.batch.size, call.states, body);
}
template <class T, class Body>
void for_each_output_of_phases(LearnCall<T>& call, int64_t phases, const Body& body) {
  body(call.stop.steps_used, phases);
  for_each_state(call.network, call.batch.size, call.free_states, body);
  for_each_state(call.network, call.batch.size, call.nudged_states, body);
}
template <class T, class Body>
void for_each_output(EpCall<T>& call, const Body& body) {
  for_each_output_of_phases(call, call.symmetric ? 3 : 2, body);
  const NetworkShape& shape = call.network.shape;
  for (int c = 0; c < shape.connection_count(); ++c) {
    body(call.gradients[c], shape.weight_count(c));
    if (call.bias_gradients[c]) body(call.bias_gradients[c], shape.above(c).channels);
    const int feedback = shape.connections[c].feedback;
    if (feedback >= 0) body(call.feedback_gradients[feedback], shape.weight_count(c));
  }
}
template <class T, class Body>
void for_each_output(CepCall<T>& call, const Body& body) {
  for_each_output_of_phases(call, call.symmetric ? 4 : 2, body);
}

// Numbers that are the same for two calls if and only if they do the same with the same parameters' memory.
class Key {
 public:
  template <class Value>
  void add(const Value& value) {
    if constexpr (std::is_floating_point_v<Value>)
      numbers_.push_back(std::bit_cast<int64_t>(static_cast<double>(value)));
    else if constexpr (std::is_pointer_v<Value>)
      numbers_.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(value)));
    else
      numbers_.push_back(static_cast<int64_t>(value));
  }
  template <class First, class... Rest>
    requires(sizeof...(Rest) > 0)
  void add(const First& first, const Rest&... rest) {
    add(first);
    (add(rest), ...);
  }
  template <class Value>
  void add(const std::vector<Value>& values) {
    add(values.size());
    for (const Value& value : values) add(value);
  }
  template <class Value, size_t count>
  void add(const std::array<Value, count>& values) {
    for (const Value& value : values) add(value);
  }
  void add(const Convolution& made) { add(made.kernel, made.stride, made.padding, made.window, made.pool); }
  void add(const MapShape& map) { add(map.channels, map.height, map.width); }
  void add(const UnitRule& rule) { add(rule.activation, rule.dynamics, rule.gain, rule.clip, rule.dt); }
  void add(const Nudge& nudge) { add(nudge.beta, nudge.at, nudge.loss); }
  void add(const Connection& joint) {
    add(joint.below, joint.above, joint.kind, joint.feedback);
    if (joint.kind == Kind::convolution) add(joint.convolution);
  }
  void add(const NetworkShape& shape) {
    add(shape.input, shape.layers, shape.connections, shape.turns, shape.output, shape.classes);
  }
  template <class T>
  void add(const Network<T>& network) {
    add(network.shape, network.rules, network.input_activation, network.free_feedback, network.weights, network.biases,
        network.feedback);
  }
  template <class T>
  void add(const RelaxCall<T>& call) {
    add(call.network, call.batch.size, call.batch.target != nullptr, call.nudge, call.steps, call.initial.empty());
  }
  template <class T>
  void add(const LearnCall<T>& call) {
    add(call.network, call.batch.size, call.nudge, call.free_steps, call.nudged_steps, call.symmetric,
        call.shared_update, call.gate);
  }
  template <class T>
  void add(const EpCall<T>& call) {
    add(static_cast<const LearnCall<T>&>(call));
    add(call.accumulate);
  }
  template <class T>
  void add(const CepCall<T>& call) {
    add(static_cast<const LearnCall<T>&>(call));
    add(call.lr, call.weight_decay);
  }

  auto operator<=>(const Key&) const = default;

 private:
  std::vector<int64_t> numbers_;
};

}  // namespace ceprop::aten
