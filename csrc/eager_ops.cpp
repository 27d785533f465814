// The ops for Python that runs at once: torch.ops.ceprop_cuda, with all arguments of the schemas, by their places.
// They go through torch's dispatcher, but past what torch does with arguments that may be of any type, and past the
// Python code that refuses gradients for torch.compile: each takes longer than a small network's call.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "arguments/refuse_gradients.h"
#include "learn_op.h"
#include "ops.h"

namespace ceprop {
namespace {

// What holds an argument for the time of a call.
template <class T>
struct Held {
  using type = std::decay_t<T>;
};
template <class T>
struct Held<at::ArrayRef<T>> {
  using type = std::vector<T>;
};

// Adds the tensors among the arguments or the results of an op.
template <class Other>
void add(Lists&, const Other&) {}
void add(Lists& all, const Tensor& one) { all.push_back(one); }
void add(Lists& all, const Lists& list) { all.insert(all.end(), list.begin(), list.end()); }
void add(Lists& all, const std::optional<Tensor>& one) {
  if (one) all.push_back(*one);
}
template <class... Results>
void add(Lists& all, const std::tuple<Results...>& results) {
  std::apply([&](const Results&... result) { (add(all, result), ...); }, results);
}

template <class Result, class... Arguments>
void define(pybind11::module_& module, const std::string& name, std::type_identity<Result(Arguments...)>) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow(("ceprop_cuda::" + name).c_str(), "")
                      .typed<Result(Arguments...)>();
  module.def(name.c_str(), [op](const typename Held<Arguments>::type&... arguments) {
    const pybind11::gil_scoped_release release;
    Result result = [&] {
      const at::AutoDispatchBelowAutograd below_autograd;
      return op.call(arguments...);
    }();
    if (!at::GradMode::is_enabled()) return result;
    Lists inputs, outputs;
    (add(inputs, arguments), ...);
    add(outputs, result);
    std::erase_if(outputs, [](const Tensor& one) { return !one.is_floating_point(); });
    if (std::any_of(inputs.begin(), inputs.end(), [](const Tensor& one) { return one.requires_grad(); }))
      refuse_gradients(outputs, inputs);
    return result;
  });
}

}  // namespace

void bind_eager_ops(pybind11::module_& module) {
  define(module, "relax", std::type_identity<decltype(relax_op<void>)>());
  define(module, "ep_step", std::type_identity<decltype(ep_step_op<void>)>());
  define(module, "cep_step", std::type_identity<decltype(cep_step_op<void>)>());
  define(module, "learn", std::type_identity<decltype(learn_op<void>)>());
  module.def(
      "new_states",
      [](const Tensor& x, const std::vector<std::vector<int64_t>>& shapes, int phases) {
        Lists states;
        for (int phase = 0; phase < phases; ++phase)
          for (std::vector<int64_t> shape : shapes) {
            shape.insert(shape.begin(), x.size(0));
            states.push_back(at::empty(shape, x.options()));
          }
        return states;
      },
      pybind11::arg("x"), pybind11::arg("shapes"), pybind11::arg("phases"));
}

}  // namespace ceprop
