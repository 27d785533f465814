// The op that learns from many batches of a data set, on any device: it checks the arguments, takes memory and calls
// one kernel. library.cpp holds its contract, ops.h says what a Device is; this one also has
//   run(calls, data, batches, learned)  learns with the network of every DescentCall or CepCall from its batches, notes
//                                       from how many, and returns whether it was interrupted
//   raise_interrupt()                   then throws
#pragma once

#include "model/batches.h"
#include "ops.h"

namespace ceprop {

struct LearnLists {
  Lists weights, biases, feedback;

  size_t count() const { return weights.size() + biases.size() + feedback.size(); }
};

inline bool has_any(at::ArrayRef<double> numbers) {
  return std::any_of(numbers.begin(), numbers.end(), [](double number) { return number != 0; });
}

// Returns the parameters of one network of several.
inline LearnLists of_network(TensorList weights, TensorList biases, TensorList feedback, size_t networks,
                             size_t number) {
  const auto part = [&](TensorList all) {
    const size_t each = all.size() / networks;
    return all.slice(number * each, each).vec();
  };
  return {part(weights), part(biases), part(feedback)};
}

inline void check_numbers(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", describe(shape), ", got ", describe(tensor.sizes()));
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.is_cpu(), name, " must be on the CPU, got ", tensor.device());
}

inline void check_indices(const char* name, const Tensor& dense, int64_t end) {
  const auto* const first = dense.const_data_ptr<int64_t>();
  const auto [low, high] = std::minmax_element(first, first + dense.numel());
  TORCH_CHECK_VALUE(dense.numel() == 0 || (*low >= 0 && *high < end), name, " must lie in 0 .. ", end - 1, ", got ",
                    *low, " .. ", *high);
}

// Returns the momenta of one network as a call takes them: like its parameters, where momentum asks for them.
template <class T>
void take_momenta(DescentCall<T>& call, TensorList momenta, const LearnLists& like, Parameters<T>& parameters) {
  size_t at = 0;
  for (const auto& [to, list] : {std::pair{&call.weight_momenta, &like.weights},
                                 {&call.bias_momenta, &like.biases},
                                 {&call.feedback_momenta, &like.feedback}})
    for (const Tensor& one : *list) {
      check_tensor(element("momenta", at), momenta[at], one.sizes(), one);
      to->push_back(parameters.take(momenta[at++]));
    }
}

// What a call is told of its batches, checked and contiguous.
struct Lessons {
  const Tensor x, target, order, betas, rates;
  const std::optional<Tensor> values;

  int64_t networks() const { return order.size(0); }
  int64_t count() const { return order.size(1); }
  int64_t batch() const { return order.size(2); }
  bool has_labels() const { return target.dim() == 1; }

  template <class T>
  DataSet<T> data() const {
    return {values ? nullptr : x.const_data_ptr<T>(),
            values ? x.const_data_ptr<uint8_t>() : nullptr,
            values ? values->const_data_ptr<T>() : nullptr,
            values ? values->size(0) : 0,
            has_labels() ? nullptr : target.const_data_ptr<T>(),
            has_labels() ? target.const_data_ptr<int64_t>() : nullptr};
  }
};

inline void check_sizes_of(const Tensor& x, const Tensor& order, const std::optional<Tensor>& values) {
  TORCH_CHECK_VALUE(order.dim() == 3 && order.numel() > 0,
                    "order must be (networks, batches, samples), none of them 0, got ", describe(order.sizes()));
  check_numbers("order", order, order.sizes(), at::kLong);
  TORCH_CHECK_VALUE(x.dim() >= 2 && x.size(0) > 0, "x must hold samples, at least 1, got ", describe(x.sizes()));
  TORCH_CHECK_VALUE((x.scalar_type() == at::kByte) == values.has_value(),
                    "values must be given for an x of bytes, and for no other");
}

inline void check_all(const char* name, const Tensor& numbers, bool may_be_zero, bool may_be_negative,
                      const char* wanted) {
  const auto* const first = numbers.const_data_ptr<double>();
  for (int64_t i = 0; i < numbers.numel(); ++i)
    check_number(element(name, i), first[i], (may_be_zero || first[i] != 0) && (may_be_negative || first[i] >= 0),
                 wanted);
}

// `like`: a batch of x as the network sees it.
inline Lessons check_lessons(const Tensor& x, const Tensor& target, const Tensor& order, const Tensor& betas,
                             const Tensor& rates, const std::optional<Tensor>& values, const NetworkShape& shape,
                             const Tensor& like) {
  const int64_t networks = order.size(0), count = order.size(1);
  check_numbers("betas", betas, {networks, count}, at::kDouble);
  check_numbers("rates", rates, {networks, count, shape.connection_count()}, at::kDouble);
  if (values) {
    TORCH_CHECK_VALUE(values->dim() == 2 && values->size(0) > 0 && shape.input.units() % values->size(0) == 0,
                      "values must be (channels, 256), and the ", shape.input.units(),
                      " inputs a multiple of the channels, got ", describe(values->sizes()));
    check_tensor("values", *values, {values->size(0), 256}, like);
  }
  check_target_of(target, x.size(0), shape.classes, like);
  Lessons lessons{x.contiguous(),     target.contiguous(), order.contiguous(),
                  betas.contiguous(), rates.contiguous(),  values ? std::optional(values->contiguous()) : std::nullopt};
  check_indices("order", lessons.order, x.size(0));
  check_all("betas", lessons.betas, false, true, "a finite number other than 0");
  check_all("rates", lessons.rates, true, false, "a finite number >= 0");
  if (lessons.has_labels()) check_indices("class indices in target", lessons.target, shape.classes);
  return lessons;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Lists> learn_op(
    const Tensor& x, const Tensor& target, const Tensor& order, const Tensor& betas, const Tensor& rates,
    const std::optional<Tensor>& values, TensorList weights, TensorList biases, TensorList feedback_weights,
    TensorList momenta, bool continual, int64_t free_steps, int64_t nudged_steps, std::optional<double> tolerance,
    std::string_view nudge_at, std::string_view loss, bool symmetric, bool accumulate, bool shared_update,
    at::ArrayRef<double> weight_decay, at::ArrayRef<double> momentum, std::string_view update, std::string_view gate,
    std::string_view activation, std::string_view output_activation, std::string_view dynamics, double dt, bool clip,
    std::string_view schedule, std::string_view feedback, bool readout, std::string_view precision,
    at::IntArrayRef strides, at::IntArrayRef paddings, std::string_view pools, at::IntArrayRef windows,
    at::IntArrayRef joined, at::IntArrayRef turns, std::string_view engine) {
  check_sizes_of(x, order, values);
  const int64_t networks = order.size(0), count = order.size(1);
  for (const auto& [name, list] : {std::pair{"weights", weights},
                                   {"biases", biases},
                                   {"feedback_weights", feedback_weights},
                                   {"momenta", momenta}})
    TORCH_CHECK_VALUE(list.size() % networks == 0, name, " must hold as many tensors for each of ", networks,
                      " networks, got ", list.size());
  TORCH_CHECK_VALUE(!weights.empty(), "weights must not be empty");
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = order.size(2);
  const Tensor like = values ? at::empty(sizes, weights[0].options()) : x.narrow(0, 0, 1).expand(sizes);
  Device device(like, parse_precision(precision), parse_engine(engine));
  const Settings settings{activation,
                          output_activation,
                          dynamics,
                          dt,
                          clip,
                          schedule,
                          feedback,
                          readout,
                          {strides, paddings, pools, windows, joined, turns}};
  const LearnArguments arguments{target,   free_steps, nudged_steps, tolerance,     1,
                                 nudge_at, loss,       symmetric,    shared_update, gate};
  std::vector<LearnLists> lists;
  NetworkShape shape;
  for (int64_t r = 0; r < networks; ++r) {
    lists.push_back(of_network(weights, biases, feedback_weights, networks, r));
    shape = check_learning(like, lists[r].weights, lists[r].biases, lists[r].feedback, arguments, settings);
    for (size_t c = 0; c < lists[r].weights.size(); ++c)
      check_tensor(element("weights", r * lists[r].weights.size() + c), lists[r].weights[c],
                   lists[0].weights[c].sizes(), like);
  }
  const Nudge nudge = check_nudge(arguments.beta, nudge_at, loss, settings);
  const Lessons lessons = check_lessons(x, target, order, betas, rates, values, shape, like);
  const std::optional<Form> form = parse_update(update);
  check_count("weight_decay", weight_decay.size(), networks, "numbers, one per network");
  check_count("momentum", momentum.size(), networks, "numbers, one per network");
  for (int64_t r = 0; r < networks; ++r) {
    check_number(element("weight_decay", r), weight_decay[r], weight_decay[r] >= 0, "a finite number >= 0");
    check_number(element("momentum", r), momentum[r], momentum[r] >= 0 && !(continual && momentum[r] != 0),
                 continual ? "0, as continual EP takes plain steps" : "a finite number >= 0");
  }
  const size_t parameters_of_one = lists[0].count();
  check_count("momenta", momenta.size(), has_any(momentum) ? networks * parameters_of_one : 0,
              "tensors, like weights, biases and feedback weights of each network, or none without momentum");
  const std::vector<Named> written =
      named({{"weights", weights}, {"biases", biases}, {"feedback_weights", feedback_weights}, {"momenta", momenta}});
  check_writable(written);

  const int nudged_phases = symmetric ? 2 : 1, phases = 1 + nudged_phases + (continual && symmetric);
  const Tensor losses = at::zeros({networks, count}, betas.options());
  const Tensor wrong = at::zeros({networks, count}, order.options());
  const Tensor steps = at::zeros({networks, count, phases}, order.options());
  const Tensor learned = at::zeros({networks}, order.options());
  const size_t layers = shape.layers.size();
  Lists states;
  bool was_interrupted = false;
  for (int64_t r = 0; r < networks; ++r)
    for (const Tensor& one : new_states(like, shape, 1 + nudged_phases)) states.push_back(one);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "learn", [&] {
    Parameters<scalar_t> parameters;
    std::vector<Batches> batches;
    for (int64_t r = 0; r < networks; ++r)
      batches.push_back({count, lessons.order[r].const_data_ptr<int64_t>(), lessons.betas[r].const_data_ptr<double>(),
                         lessons.rates[r].const_data_ptr<double>(), losses[r].mutable_data_ptr<double>(),
                         wrong[r].mutable_data_ptr<int64_t>(), steps[r].mutable_data_ptr<int64_t>(), nullptr});
    // Runs calls that `finish` completes.
    const auto run = [&]<class Call>(std::vector<Call> calls, const auto& finish) {
      for (int64_t r = 0; r < networks; ++r) {
        Call& call = calls[r];
        const TensorList own = TensorList(states).slice(r * layers * (1 + nudged_phases), layers * (1 + nudged_phases));
        call.network =
            describe_network(lists[r].weights, lists[r].biases, lists[r].feedback, settings, shape, parameters);
        describe_learning(call, like, like, arguments, nudge, check_stop(tolerance, steps), own.slice(0, layers),
                          own.slice(layers), parameters);
        call.lr.resize(shape.connections.size());
        call.weight_decay = weight_decay[r];
        finish(call, r);
      }
      was_interrupted = device.run(calls, lessons.data<scalar_t>(), batches, learned.mutable_data_ptr<int64_t>());
    };
    if (continual)
      run(std::vector<CepCall<scalar_t>>(networks), [&](CepCall<scalar_t>& call, int64_t r) {
        call.forms = forms_of(like, shape, arguments, weight_decay[r], settings, form);
      });
    else
      run(std::vector<DescentCall<scalar_t>>(networks), [&](DescentCall<scalar_t>& call, int64_t r) {
        call.accumulate = accumulate;
        call.momentum = momentum[r];
        if (!momenta.empty())
          take_momenta(call, momenta.slice(r * parameters_of_one, parameters_of_one), lists[r], parameters);
      });
    parameters.write_back();
  });
  note_written(written);
  if (was_interrupted) device.raise_interrupt();
  return {losses, wrong, steps, learned, std::move(states)};
}

}  // namespace ceprop
