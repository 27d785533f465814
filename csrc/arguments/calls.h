// This turns the arguments of an op into the plain struct of a kernel's call. It checks them and takes memory, for
// every device alike.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "../model/chain.h"
#include "../model/costs.h"
#include "../model/network.h"
#include "checks.h"
#include "network_shape.h"

namespace ceprop {

using at::Tensor;
using at::TensorList;
using Lists = std::vector<Tensor>;

// All ops share these arguments, in the order of the schema.
struct Settings {
  std::string_view activation, output_activation, dynamics;
  double dt;
  bool clip;
  std::string_view schedule, feedback;
  bool readout;
  StructureArguments structure;
};

// This keeps contiguous versions of the parameters alive beside the pointers to them. `write_back` writes those back
// that had to be copied.
template <class T>
struct Parameters {
  std::vector<Tensor> given, dense;

  T* take(const Tensor& tensor) {
    if (tensor.numel() == 0) return nullptr;
    given.push_back(tensor);
    dense.push_back(tensor.contiguous());
    return dense.back().template mutable_data_ptr<T>();
  }
  std::vector<T*> take_all(TensorList tensors) {
    std::vector<T*> pointers;
    for (const Tensor& tensor : tensors) pointers.push_back(take(tensor));
    return pointers;
  }
  void write_back() {
    for (size_t i = 0; i < given.size(); ++i)
      if (!dense[i].is_same(given[i])) given[i].copy_(dense[i]);
  }
};

// Checks what describes the network, and returns its shape.
inline NetworkShape check_network(const Tensor& x, TensorList weights, TensorList biases, TensorList feedback,
                                  const Settings& settings) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "x must be float32 or float64, got ", x.scalar_type());
  const size_t least = settings.readout ? 2 : 1;
  TORCH_CHECK_VALUE(weights.size() >= least, "weights must hold at least ", least, " tensors, got ", weights.size());
  check_count("biases", biases.size(), weights.size(), "tensors like the weights");
  const bool free = parse_free_feedback(settings.feedback), asynchronous = parse_asynchronous(settings.schedule);
  NetworkShape shape = check_shape(x, weights, settings.readout, free, asynchronous, settings.structure);
  size_t inner = 0;
  for (int c = 0; c < shape.connection_count(); ++c) {
    if (biases[c].numel() != 0 || biases[c].dim() != 1)
      check_tensor(element("biases", c), biases[c], {shape.above(c).channels}, x);
    inner += shape.connections[c].feedback >= 0;
  }
  check_count("feedback_weights", feedback.size(), inner,
              free ? "tensors with free feedback" : "tensors with tied feedback");
  for (int c = 0; c < shape.connection_count(); ++c)
    if (const int index = shape.connections[c].feedback; index >= 0)
      check_tensor(element("feedback_weights", index), feedback[index], weights[c].sizes(), x);
  check_number("dt", settings.dt, settings.dt > 0, "a finite number > 0");
  return shape;
}

inline Stop check_stop(std::optional<double> tolerance, const Tensor& steps_used) {
  if (tolerance) check_number("tolerance", *tolerance, *tolerance >= 0, "a finite number >= 0, or None");
  return {tolerance, steps_used.mutable_data_ptr<int64_t>()};
}

template <class T>
Network<T> describe_network(TensorList weights, TensorList biases, TensorList feedback, const Settings& settings,
                            const NetworkShape& shape, Parameters<T>& parameters) {
  Network<T> network;
  network.shape = shape;
  network.free_feedback = parse_free_feedback(settings.feedback);
  const Dynamics dynamics = parse_dynamics(settings.dynamics);
  const Activation hidden = parse_activation("activation", settings.activation);
  const Activation output = parse_activation("output_activation", settings.output_activation);
  network.input_activation = hidden;
  for (int l = 0; l < shape.layer_count(); ++l) {
    const bool is_output = l == shape.output;
    network.rules.push_back({is_output && !settings.readout ? output : hidden, dynamics,
                             !is_output && !network.free_feedback, settings.clip, settings.dt});
  }
  network.weights = parameters.take_all(weights);
  network.biases = parameters.take_all(biases);
  network.feedback = parameters.take_all(feedback);
  return network;
}

inline Nudge check_nudge(double beta, std::string_view nudge_at, std::string_view loss, const Settings& settings) {
  check_number("beta", beta, beta != 0, "a finite number other than 0 in a nudged phase");
  const Nudge nudge{beta, parse_nudge_at(nudge_at), parse_loss(loss)};
  if (settings.readout) {
    TORCH_CHECK_VALUE(!is_of_units(nudge.loss), "loss must be one of logits with a readout, as 'cross_entropy', got '",
                      loss, "'");
    TORCH_CHECK_VALUE(nudge.at == NudgeAt::drive, "nudge_at must be 'drive' with a readout, got '", nudge_at, "'");
  } else if (!is_of_units(nudge.loss)) {
    TORCH_CHECK_VALUE(settings.output_activation == "linear", "loss = '", loss,
                      "' needs output_activation = 'linear' or a readout, got output_activation = '",
                      settings.output_activation, "'");
  }
  return nudge;
}

// Checks that the target is one of so many samples: class indices, or floats like x.
inline void check_target_of(const Tensor& target, int64_t samples, int64_t classes, const Tensor& x) {
  TORCH_CHECK_VALUE(target.device() == x.device(), "target must be on ", x.device(), " like x, got ", target.device());
  if (target.dim() != 1) return check_tensor("target", target, {samples, classes}, x);
  TORCH_CHECK_VALUE(target.size(0) == samples, "target must be (", samples, ",) class indices or (", samples, ", ",
                    classes, ") floats, got ", describe(target.sizes()));
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, "class indices in target must be int64, got ",
                   target.scalar_type());
}

// Returns the target, contiguous: floats [B, classes], or what the device makes of class indices.
template <class Device>
Tensor check_target(const Tensor& target, const Tensor& x, int64_t classes, const Device& device) {
  check_target_of(target, x.size(0), classes, x);
  return target.dim() == 1 ? device.target_of(target.contiguous(), x, classes) : target.contiguous();
}

template <class T>
Batch<T> batch_of(const Tensor& x, const Tensor* target) {
  const bool is_index = target && target->dim() == 1;
  return {x.size(0), x.const_data_ptr<T>(), target && !is_index ? target->const_data_ptr<T>() : nullptr,
          is_index ? target->const_data_ptr<int64_t>() : nullptr};
}

// Returns new states of every layer, `phases` times.
inline Lists new_states(const Tensor& x, const NetworkShape& shape, int phases) {
  Lists states;
  for (int phase = 0; phase < phases; ++phase)
    for (int l = 0; l < shape.layer_count(); ++l) states.push_back(at::empty(shape.sizes(l, x.size(0)), x.options()));
  return states;
}

inline Lists new_like(TensorList tensors) {
  Lists result;
  for (const Tensor& tensor : tensors) result.push_back(at::empty(tensor.sizes(), tensor.options()));
  return result;
}

// ep_step and cep_step share these arguments.
struct LearnArguments {
  const Tensor& target;
  int64_t free_steps, nudged_steps;
  std::optional<double> tolerance;
  double beta;
  std::string_view nudge_at, loss;
  bool symmetric, shared_update;
  std::string_view gate;
};

inline NetworkShape check_learning(const Tensor& x, TensorList weights, TensorList biases, TensorList feedback,
                                   const LearnArguments& arguments, const Settings& settings) {
  NetworkShape shape = check_network(x, weights, biases, feedback, settings);
  check_steps("free_steps", arguments.free_steps, 0);
  check_steps("nudged_steps", arguments.nudged_steps, 1);
  TORCH_CHECK_VALUE(!arguments.shared_update || parse_free_feedback(settings.feedback),
                    "shared_update must be False with tied feedback, got True");
  if (parse_gate(arguments.gate) != Gate::none) {
    TORCH_CHECK_VALUE(parse_free_feedback(settings.feedback) && !arguments.shared_update, "gate must be 'none' with ",
                      arguments.shared_update ? "a shared update" : "tied feedback", ", got '", arguments.gate, "'");
  }
  return shape;
}

template <class T>
inline void describe_learning(LearnCall<T>& call, const Tensor& x, const Tensor& target,
                              const LearnArguments& arguments, const Nudge& nudge, const Stop& stop,
                              TensorList free_states, TensorList nudged_states, Parameters<T>& parameters) {
  call.batch = batch_of<T>(x, &target);
  call.nudge = nudge;
  call.free_steps = static_cast<int>(arguments.free_steps);
  call.nudged_steps = static_cast<int>(arguments.nudged_steps);
  call.stop = stop;
  call.symmetric = arguments.symmetric;
  call.shared_update = arguments.shared_update;
  call.gate = parse_gate(arguments.gate);
  call.free_states = parameters.take_all(free_states);
  call.nudged_states = parameters.take_all(nudged_states);
}

struct Named {
  Name name;
  Tensor tensor;
};

// Returns those of all lists that hold anything: a bias that does not exist has no memory.
inline std::vector<Named> named(std::initializer_list<std::pair<const char*, TensorList>> lists) {
  std::vector<Named> result;
  for (const auto& [name, tensors] : lists)
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].numel() > 0) result.push_back({element(name, i), tensors[i]});
  return result;
}

// Returns where each number of a tensor lies, in bytes, in order.
inline std::vector<const char*> places_of(const Tensor& tensor) {
  std::vector<const char*> places{static_cast<const char*>(tensor.const_data_ptr())};
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const size_t before = places.size();
    for (int64_t i = 1; i < tensor.size(d); ++i)
      for (size_t n = 0; n < before; ++n)
        places.push_back(places[n] + i * tensor.stride(d) * static_cast<int64_t>(tensor.element_size()));
  }
  std::sort(places.begin(), places.end());
  return places;
}

// torch gives up on some strides: then this compares the places.
inline bool overlaps_itself(const Tensor& tensor) {
  const at::MemOverlap known = at::has_internal_overlap(tensor);
  if (known != at::MemOverlap::TooHard) return known == at::MemOverlap::Yes;
  const std::vector<const char*> places = places_of(tensor);
  return std::adjacent_find(places.begin(), places.end()) != places.end();
}
inline bool overlap(const Tensor& a, const Tensor& b) {
  const at::MemOverlapStatus known = at::get_overlap_status(a, b);
  if (known != at::MemOverlapStatus::TooHard) return known != at::MemOverlapStatus::No;
  const std::vector<const char*> of_a = places_of(a), of_b = places_of(b);
  for (auto at_a = of_a.begin(), at_b = of_b.begin(); at_a != of_a.end() && at_b != of_b.end();) {
    if (*at_a == *at_b) return true;
    *at_a < *at_b ? ++at_a : ++at_b;
  }
  return false;
}

// Checks that what will be written can be: every number lies in memory of its own, and autograd allows it.
inline void check_writable(const std::vector<Named>& written) {
  for (const auto& [name, tensor] : written) {
    TORCH_CHECK(!(at::GradMode::is_enabled() && tensor.requires_grad()), name,
                " requires grad and is changed in place: call cep_step under torch.no_grad()");
    TORCH_CHECK_VALUE(!overlaps_itself(tensor), name,
                      " is changed in place and must not be an expanded or overlapping tensor; clone it");
  }
  for (size_t i = 0; i < written.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      TORCH_CHECK_VALUE(!overlap(written[i].tensor, written[j].tensor), written[i].name, " and ", written[j].name,
                        " are both changed in place and must not share memory");
}

// This alone decides what a C-EP step costs, whatever the numbers.
inline StepShape shape_of(const Tensor& x, const NetworkShape& network, const LearnArguments& arguments,
                          bool weight_decay, const Settings& settings) {
  return {.network = network,
          .free_feedback = parse_free_feedback(settings.feedback),
          .symmetric = arguments.symmetric,
          .accumulate = false,
          .shared_update = arguments.shared_update,
          .weight_decay = weight_decay,
          .literal_input = x.is_cpu(),
          .batch = x.size(0),
          .free_steps = static_cast<int>(arguments.free_steps),
          .nudged_steps = static_cast<int>(arguments.nudged_steps),
          .number_bytes = static_cast<int64_t>(x.element_size())};
}

// Returns how C-EP holds the weights: as is wished for, or by what it costs. Only dense chains have a low rank.
inline Forms forms_of(const Tensor& x, const NetworkShape& network, const LearnArguments& arguments,
                      double weight_decay, const Settings& settings, std::optional<Form> wanted) {
  if (!is_chain(network) || network.has_convolutions()) return {Form::literal, Form::literal};
  return StepCosts(shape_of(x, network, arguments, weight_decay != 0, settings)).choose(wanted);
}

// Tells autograd that these have changed.
inline void note_written(const std::vector<Named>& written) {
  for (const auto& [name, tensor] : written)
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace ceprop
