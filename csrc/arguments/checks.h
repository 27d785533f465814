// These check the arguments of the ops. Every message names the argument, what was expected and what came.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <ostream>
#include <string>

#include "../model/network.h"

namespace ceprop {

inline std::string describe(at::IntArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// The name of an argument, or of one in a list. Only an error makes words of it: that takes longer than a check.
struct Name {
  Name(const char* list, int64_t index = -1) : list(list), index(index) {}

  const char* list;
  int64_t index;
};
inline std::ostream& operator<<(std::ostream& out, const Name& name) {
  return name.index < 0 ? out << name.list : out << name.list << "[" << name.index << "]";
}

inline Name element(const char* list, size_t index) { return {list, static_cast<int64_t>(index)}; }

// Checks that `tensor` has this shape and the dtype and device of `like`.
inline void check_tensor(const Name& name, const at::Tensor& tensor, at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", describe(shape), ", got ", describe(tensor.sizes()));
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(), " like x, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), " like x, got ",
                    tensor.device());
}

inline void check_count(const char* name, size_t got, size_t expected, const char* what) {
  TORCH_CHECK_VALUE(got == expected, name, " must hold ", expected, " ", what, ", got ", got);
}

inline void check_steps(const char* name, int64_t steps, int64_t least) {
  TORCH_CHECK_VALUE(steps >= least, name, " must be an int >= ", least, ", got ", steps);
  TORCH_CHECK_VALUE(steps <= INT32_MAX, name, " must be an int <= ", INT32_MAX, ", got ", steps);
}

inline void check_number(const Name& name, double value, bool allowed, const char* wanted) {
  TORCH_CHECK_VALUE(std::isfinite(value) && allowed, name, " must be ", wanted, ", got ", value);
}

// Returns the value of `choices` (pairs of name and value) that `given` names.
template <class Value, size_t count>
Value parse(const char* name, std::string_view given, const std::pair<const char*, Value> (&choices)[count]) {
  for (const auto& [choice, value] : choices)
    if (given == choice) return value;
  std::string names;
  for (const auto& [choice, value] : choices) names += (names.empty() ? "'" : ", '") + std::string(choice) + "'";
  TORCH_CHECK_VALUE(false, name, " must be one of ", names, ", got '", given, "'");
}

// Returns the value that a list of model/ has at the place of `given` among its names.
template <class Value, size_t count>
Value parse(const char* name, std::string_view given, const char* const (&names)[count]) {
  std::pair<const char*, Value> choices[count];
  for (size_t i = 0; i < count; ++i) choices[i] = {names[i], static_cast<Value>(i)};
  return parse(name, given, choices);
}

inline Activation parse_activation(const char* name, std::string_view given) {
  return parse<Activation>(name, given, activation_names);
}

inline Loss parse_loss(std::string_view given) { return parse<Loss>("loss", given, loss_names); }

inline Dynamics parse_dynamics(std::string_view given) {
  constexpr std::pair<const char*, Dynamics> choices[] = {{"prototypical", Dynamics::prototypical},
                                                          {"energy", Dynamics::energy}};
  return parse("dynamics", given, choices);
}

inline NudgeAt parse_nudge_at(std::string_view given) {
  constexpr std::pair<const char*, NudgeAt> choices[] = {{"state", NudgeAt::state}, {"drive", NudgeAt::drive}};
  return parse("nudge_at", given, choices);
}

inline bool parse_asynchronous(std::string_view given) {
  constexpr std::pair<const char*, bool> choices[] = {{"synchronous", false}, {"asynchronous", true}};
  return parse("schedule", given, choices);
}

// Returns the form that is wished for, or none for "auto".
inline std::optional<Form> parse_update(std::string_view given) {
  constexpr std::pair<const char*, std::optional<Form>> choices[] = {
      {"auto", std::nullopt}, {"literal", Form::literal}, {"low_rank", Form::low_rank}};
  return parse("update", given, choices);
}

inline Gate parse_gate(std::string_view given) { return parse<Gate>("gate", given, gate_names); }

inline Precision parse_precision(std::string_view given) {
  constexpr std::pair<const char*, Precision> choices[] = {{"exact", Precision::exact}, {"tf32", Precision::tf32}};
  return parse("precision", given, choices);
}

inline Engine parse_engine(std::string_view given) {
  constexpr std::pair<const char*, Engine> choices[] = {
      {"auto", Engine::automatic}, {"fused", Engine::fused}, {"teams", Engine::teams}, {"graph", Engine::graph}};
  return parse("engine", given, choices);
}

inline bool parse_free_feedback(std::string_view given) {
  constexpr std::pair<const char*, bool> choices[] = {{"tied", false}, {"free", true}};
  return parse("feedback", given, choices);
}

}  // namespace ceprop
