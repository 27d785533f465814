// The ops check their arguments, take memory and call one kernel, on any device. library.cpp holds their contracts.
//
// A Device serves one call. It is built from x and the precision and the engine asked for, which it may refuse, and has
//   new_steps(phases)               returns where phases note how many steps they took, int64 [phases]
//   target_of(labels, x, classes)   returns class indices [B] as they are, or as floats [B, classes]
//   run(call)                       runs a RelaxCall, EpCall or CepCall
//   clear_unless_finite(steps, gradients)  sets gradients to zero if the steps say that they are not finite
#pragma once

#include "arguments/calls.h"

namespace ceprop {

template <class Device>
std::tuple<Lists, Tensor> relax_op(const Tensor& x, TensorList weights, TensorList biases, TensorList feedback_weights,
                                   TensorList states, const std::optional<Tensor>& target, int64_t steps,
                                   std::optional<double> tolerance, double beta, std::string_view nudge_at,
                                   std::string_view loss, std::string_view activation,
                                   std::string_view output_activation, std::string_view dynamics, double dt, bool clip,
                                   std::string_view schedule, std::string_view feedback, bool readout,
                                   std::string_view precision, at::IntArrayRef strides, at::IntArrayRef paddings,
                                   std::string_view pools, at::IntArrayRef windows, at::IntArrayRef joined,
                                   at::IntArrayRef turns, std::string_view engine) {
  Device device(x, parse_precision(precision), parse_engine(engine));
  const Settings settings{activation,
                          output_activation,
                          dynamics,
                          dt,
                          clip,
                          schedule,
                          feedback,
                          readout,
                          {strides, paddings, pools, windows, joined, turns}};
  const NetworkShape shape = check_network(x, weights, biases, feedback_weights, settings);
  check_steps("steps", steps, 0);
  const size_t layers = shape.layers.size();
  if (!states.empty()) check_count("states", states.size(), layers, "tensors, one per layer, or none");
  for (size_t l = 0; l < states.size(); ++l)
    check_tensor(element("states", l), states[l], shape.sizes(static_cast<int>(l), x.size(0)), x);
  std::optional<Tensor> dense_target;
  Nudge nudge{};
  if (target) {
    nudge = check_nudge(beta, nudge_at, loss, settings);
    dense_target = check_target(*target, x, shape.classes, device);
  }
  const Tensor steps_used = device.new_steps(1);
  const Stop stop = check_stop(tolerance, steps_used);
  const Lists result = new_states(x, shape, 1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "relax", [&] {
    Parameters<scalar_t> parameters;
    const Tensor dense_x = x.contiguous();
    RelaxCall<scalar_t> call;
    call.network = describe_network(weights, biases, feedback_weights, settings, shape, parameters);
    call.batch = batch_of<scalar_t>(dense_x, dense_target ? &*dense_target : nullptr);
    call.nudge = nudge;
    call.steps = static_cast<int>(steps);
    call.stop = stop;
    for (const scalar_t* s : parameters.take_all(states)) call.initial.push_back(s);
    call.states = parameters.take_all(result);
    device.run(call);
  });
  return {result, steps_used};
}

template <class Device>
std::tuple<Lists, Lists, Lists, Lists, Lists, Tensor> ep_step_op(
    const Tensor& x, TensorList weights, TensorList biases, TensorList feedback_weights, const Tensor& target,
    int64_t free_steps, int64_t nudged_steps, std::optional<double> tolerance, double beta, std::string_view nudge_at,
    std::string_view loss, bool symmetric, bool accumulate, bool shared_update, std::string_view gate,
    std::string_view activation, std::string_view output_activation, std::string_view dynamics, double dt, bool clip,
    std::string_view schedule, std::string_view feedback, bool readout, std::string_view precision,
    at::IntArrayRef strides, at::IntArrayRef paddings, std::string_view pools, at::IntArrayRef windows,
    at::IntArrayRef joined, at::IntArrayRef turns, std::string_view engine) {
  Device device(x, parse_precision(precision), parse_engine(engine));
  const Settings settings{activation,
                          output_activation,
                          dynamics,
                          dt,
                          clip,
                          schedule,
                          feedback,
                          readout,
                          {strides, paddings, pools, windows, joined, turns}};
  const LearnArguments arguments{target,   free_steps, nudged_steps, tolerance,     beta,
                                 nudge_at, loss,       symmetric,    shared_update, gate};
  const NetworkShape shape = check_learning(x, weights, biases, feedback_weights, arguments, settings);
  const Nudge nudge = check_nudge(beta, nudge_at, loss, settings);
  const Tensor dense_x = x.contiguous(), dense_target = check_target(target, x, shape.classes, device);
  Tensor steps_used = device.new_steps(symmetric ? 3 : 2);
  const Stop stop = check_stop(tolerance, steps_used);
  Lists gradients = new_like(weights), bias_gradients = new_like(biases),
        feedback_gradients = new_like(feedback_weights);
  Lists free = new_states(x, shape, 1), nudged = new_states(x, shape, symmetric ? 2 : 1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ep_step", [&] {
    Parameters<scalar_t> parameters;
    EpCall<scalar_t> call;
    call.network = describe_network(weights, biases, feedback_weights, settings, shape, parameters);
    describe_learning(call, dense_x, dense_target, arguments, nudge, stop, free, nudged, parameters);
    call.accumulate = accumulate;
    call.gradients = parameters.take_all(gradients);
    call.bias_gradients = parameters.take_all(bias_gradients);
    call.feedback_gradients = parameters.take_all(feedback_gradients);
    device.run(call);
    device.clear_unless_finite(steps_used, {gradients, bias_gradients, feedback_gradients});
  });
  return {std::move(gradients), std::move(bias_gradients), std::move(feedback_gradients),
          std::move(free),      std::move(nudged),         std::move(steps_used)};
}

template <class Device>
Tensor cep_step_op(const Tensor& x, TensorList weights, TensorList biases, TensorList feedback_weights,
                   const Tensor& target, TensorList free_states, TensorList nudged_states, int64_t free_steps,
                   int64_t nudged_steps, std::optional<double> tolerance, double beta, std::string_view nudge_at,
                   std::string_view loss, at::ArrayRef<double> lr, bool symmetric, bool shared_update,
                   double weight_decay, std::string_view update, std::string_view gate, std::string_view activation,
                   std::string_view output_activation, std::string_view dynamics, double dt, bool clip,
                   std::string_view schedule, std::string_view feedback, bool readout, std::string_view precision,
                   at::IntArrayRef strides, at::IntArrayRef paddings, std::string_view pools, at::IntArrayRef windows,
                   at::IntArrayRef joined, at::IntArrayRef turns, std::string_view engine) {
  Device device(x, parse_precision(precision), parse_engine(engine));
  const Settings settings{activation,
                          output_activation,
                          dynamics,
                          dt,
                          clip,
                          schedule,
                          feedback,
                          readout,
                          {strides, paddings, pools, windows, joined, turns}};
  const LearnArguments arguments{target,   free_steps, nudged_steps, tolerance,     beta,
                                 nudge_at, loss,       symmetric,    shared_update, gate};
  const NetworkShape shape = check_learning(x, weights, biases, feedback_weights, arguments, settings);
  const Nudge nudge = check_nudge(beta, nudge_at, loss, settings);
  check_count("lr", lr.size(), weights.size(), "rates, one per connection");
  for (size_t l = 0; l < lr.size(); ++l) check_number(element("lr", l), lr[l], lr[l] >= 0, "a finite number >= 0");
  check_number("weight_decay", weight_decay, weight_decay >= 0, "a finite number >= 0");
  const std::optional<Form> form = parse_update(update);
  Tensor steps_used = device.new_steps(symmetric ? 4 : 2);
  const Stop stop = check_stop(tolerance, steps_used);
  const size_t layers = shape.layers.size();
  check_count("free_states", free_states.size(), layers, "tensors, one per layer");
  check_count("nudged_states", nudged_states.size(), symmetric ? 2 * layers : layers,
              "tensors, one per layer and phase");
  for (size_t i = 0; i < layers; ++i)
    check_tensor(element("free_states", i), free_states[i], shape.sizes(static_cast<int>(i), x.size(0)), x);
  for (size_t i = 0; i < nudged_states.size(); ++i)
    check_tensor(element("nudged_states", i), nudged_states[i], shape.sizes(static_cast<int>(i % layers), x.size(0)),
                 x);
  const Tensor dense_x = x.contiguous(), dense_target = check_target(target, x, shape.classes, device);
  const std::vector<Named> written = named({{"weights", weights},
                                            {"biases", biases},
                                            {"feedback_weights", feedback_weights},
                                            {"free_states", free_states},
                                            {"nudged_states", nudged_states}});
  check_writable(written);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cep_step", [&] {
    Parameters<scalar_t> parameters;
    CepCall<scalar_t> call;
    call.network = describe_network(weights, biases, feedback_weights, settings, shape, parameters);
    describe_learning(call, dense_x, dense_target, arguments, nudge, stop, free_states, nudged_states, parameters);
    call.lr = lr.vec();
    call.weight_decay = weight_decay;
    call.forms = forms_of(x, shape, arguments, weight_decay, settings, form);
    device.run(call);
    parameters.write_back();
  });
  note_written(written);
  return steps_used;
}

}  // namespace ceprop
