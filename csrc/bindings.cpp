// What the library tells Python beside its ops: facts of the build, costs and plans.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>

#include "arguments/calls.h"
#include "cpu/kernels.h"
#include "cpu/team_size.h"
#include "cpu/threads.h"
#ifdef CEPROP_WITH_CUDA
#include "cuda/build_facts.h"
#include "cuda/devices.h"
#endif
#include "cuda/maps/plan.h"
#include "cuda/teams/plan.h"
#include "model/chain.h"
#include "model/costs.h"
#include "model/learning.h"

namespace ceprop {
void bind_eager_ops(pybind11::module_& module);  // of eager_ops.cpp
}

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> facts;
  std::string runnable;
  for (const std::string& name : ceprop::runnable_kernels()) runnable += (runnable.empty() ? "" : ", ") + name;
  try {
    facts["cpu_kernels"] = ceprop::chosen_kernels().name;
  } catch (const std::invalid_argument& error) {
    facts["cpu_kernels"] = std::string("none: ") + error.what();
  }
  facts["cpu_kernels_runnable"] = runnable;
  for (const char* name : ceprop::activation_names)
    facts["activations"] += (facts["activations"].empty() ? "" : ", ") + std::string(name);
  for (const char* name : ceprop::loss_names)
    facts["losses"] += (facts["losses"].empty() ? "" : ", ") + std::string(name);
  facts["compiler"] = __VERSION__;
  facts["built_for_torch"] = TORCH_VERSION;
#ifdef CEPROP_WITH_CUDA
  facts["cuda"] = ceprop::cuda_build_facts();
#else
  facts["cuda"] = "not built";
#endif
  return facts;
}

// Returns a chain of dense layers; `widths` are n_in, n_0, ..., n_{L-1}, and the classes of a readout.
ceprop::NetworkShape chain_of(const std::vector<int64_t>& widths, bool readout, bool free_feedback, bool asynchronous) {
  std::vector<ceprop::MapShape> maps;
  for (const int64_t width : widths) maps.push_back({width, 1, 1});
  return ceprop::chain_of(maps, {}, readout, free_feedback, asynchronous);
}

// Returns what model/costs.h says of a learning step: (operations, bytes) of each of its parts, and of the continual
// update in every form that is exact; then the forms that the kernels take, "input" and "inner", when `update` is
// wished for.
using Parts = std::map<std::string, std::pair<double, double>>;

std::pair<Parts, std::map<std::string, std::string>> step_costs(const std::vector<int64_t>& widths, bool readout,
                                                                bool free_feedback, bool asynchronous, bool symmetric,
                                                                bool accumulate, bool shared_update, bool weight_decay,
                                                                bool literal_input, int64_t batch, int free_steps,
                                                                int nudged_steps, int64_t number_bytes, bool continual,
                                                                const std::string& update) {
  using ceprop::Form;
  const ceprop::NetworkShape network = chain_of(widths, readout, free_feedback, asynchronous);
  const ceprop::StepShape shape{.network = network,
                                .free_feedback = free_feedback,
                                .symmetric = symmetric,
                                .accumulate = accumulate,
                                .shared_update = shared_update,
                                .weight_decay = weight_decay,
                                .literal_input = literal_input,
                                .batch = batch,
                                .free_steps = free_steps,
                                .nudged_steps = nudged_steps,
                                .number_bytes = number_bytes};
  const ceprop::StepCosts costs(shape);
  Parts parts;
  std::map<std::string, std::string> chosen;
  const auto add = [&](const std::string& name, const ceprop::Cost& cost) {
    parts[name] = {cost.operations, cost.bytes};
  };
  add("free phase", costs.free_phase());
  add("nudged phases", costs.nudged_phases(continual));
  if (!continual) {
    add("contrast", costs.contrast());
    return {parts, chosen};
  }
  const ceprop::Forms forms = costs.choose(ceprop::parse_update(update));
  for (const auto& [name, form] : {std::pair{"literal", Form::literal}, std::pair{"low_rank", Form::low_rank}}) {
    if (form == Form::low_rank || literal_input) add(std::string("input update, ") + name, costs.input_update(form));
    if (form == Form::literal || costs.inner_has_low_rank())
      add(std::string("inner updates, ") + name, costs.inner_update(form));
    if (forms.input == form) chosen["input"] = name;
    if (forms.inner == form) chosen["inner"] = name;
  }
  return {parts, chosen};
}

// Returns which terms the contrast of a connection has, (above moves, below moves), as model/learning.h says.
std::pair<bool, bool> contrast_terms(bool free_feedback, bool shared_update, bool of_input, bool of_feedback) {
  const ceprop::Learns learns = ceprop::learns_by(free_feedback, shared_update);
  const ceprop::Copy copy = of_feedback ? ceprop::Copy::feedback : ceprop::Copy::weights;
  const ceprop::Terms terms = ceprop::terms_of(learns, of_input, copy);
  return {terms.above_moves, terms.below_moves};
}

#ifdef CEPROP_WITH_CUDA
// Returns the arguments of launch_plan that say what a device is.
std::map<std::string, int64_t> cuda_device(int index) {
  const ceprop::cuda::Device device = ceprop::cuda::properties_of(index);
  return {{"multiprocessors", device.multiprocessors},
          {"shared_bytes", device.shared_bytes},
          {"cluster_blocks", device.cluster_blocks},
          {"clusters", device.clusters}};
}
#endif

// Returns how teams of a device's blocks would run a call on a chain of dense layers; ValueError if none can. See
// cuda/teams/layout.h.
pybind11::dict launch_plan(int multiprocessors, int64_t shared_bytes, int cluster_blocks, int clusters,
                           const std::vector<int64_t>& widths, bool asynchronous, int64_t batch, int64_t number_bytes,
                           bool continual, bool tolerance) {
  namespace teams = ceprop::cuda::teams;
  const ceprop::NetworkShape network = chain_of(widths, false, false, asynchronous);
  const teams::Shape shape{network, batch, number_bytes, continual, false, tolerance};
  teams::Planned planned = teams::obstacle_of(network);
  if (std::get<std::string>(planned).empty())
    planned = teams::plan_team({multiprocessors, shared_bytes, cluster_blocks, clusters}, shape);
  if (const std::string* reason = std::get_if<std::string>(&planned)) throw pybind11::value_error(*reason);
  const teams::Plan& plan = std::get<teams::Plan>(planned);
  constexpr const char* kinds[] = {"block", "cluster", "grid"};
  pybind11::dict facts;
  const auto add = [&](const std::string& prefix, const teams::Layout& layout) {
    const auto note = [&](const char* name, const auto& value) { facts[(prefix + name).c_str()] = value; };
    note("team", kinds[static_cast<int>(layout.kind)]);
    note("blocks", layout.blocks);
    note("teams", layout.teams);
    note("warps", layout.warps);
    note("samples", layout.samples);
    note("groups", layout.groups);
    note("rounds", layout.rounds);
    if (layout.kind == teams::TeamKind::grid) note("copied_groups", layout.copied_groups);
    std::vector<std::vector<int>> layers(layout.blocks);
    for (int block = 0; block < layout.blocks; ++block)
      for (int i = layout.first_of_block[block]; i < layout.first_of_block[block + 1]; ++i)
        layers[block].push_back(layout.layer_of(i));
    note("layers_of_octets", layers);
    note("step_us", teams::planning::step_microseconds(shape, layout, !prefix.empty()));
  };
  add("", plan.layout);
  if (continual) add("moving_", plan.moving);
  facts["launch_blocks"] = plan.blocks;
  facts["launch_warps"] = plan.warps;
  facts["shared_bytes"] = plan.shared_bytes;
  facts["workspace_bytes"] = plan.workspace_bytes;
  std::vector<std::pair<int, int>> sources;  // chunks and pairs that an octet of each layer reads
  for (int l = 0; l < network.layer_count(); ++l) {
    const teams::Sources of = teams::planning::sources_of(shape, l);
    sources.push_back({of.chunks, of.pairs});
  }
  facts["sources_of_layers"] = sources;
  return facts;
}

using Sizes = std::vector<std::array<int64_t, 3>>;
// Kernel, stride, padding, window, each height and width.
using Convolutions = std::vector<std::array<int64_t, 8>>;

// Returns how clusters of a device's blocks would take the phases of a chain with convolutions in which weights rest;
// ValueError if none can. `maps`: of the input and above each connection. See cuda/maps/layout.h.
pybind11::dict map_plan(int multiprocessors, int64_t shared_bytes, int cluster_blocks, int clusters, const Sizes& maps,
                        const Convolutions& convolutions, const std::vector<std::string>& pools, bool readout,
                        bool free_feedback, bool asynchronous, int64_t batch, int number_bytes) {
  namespace maps_room = ceprop::cuda::maps;
  std::vector<ceprop::MapShape> shapes;
  for (const auto& [channels, height, width] : maps) shapes.push_back({channels, height, width});
  std::vector<ceprop::Convolution> made;
  for (size_t i = 0; i < convolutions.size(); ++i) {
    const auto& c = convolutions[i];
    using ceprop::Pool;
    const Pool pool = pools[i] == "max" ? Pool::max : pools[i] == "avg" ? Pool::avg : Pool::none;
    made.push_back({{c[0], c[1]}, {c[2], c[3]}, {c[4], c[5]}, {c[6], c[7]}, pool});
  }
  const ceprop::NetworkShape network = ceprop::chain_of(shapes, made, readout, free_feedback, asynchronous);
  maps_room::Planned planned = maps_room::obstacle_of(network, free_feedback);
  if (std::get<std::string>(planned).empty())
    planned =
        maps_room::plan_maps({multiprocessors, shared_bytes, cluster_blocks, clusters}, network, batch, number_bytes);
  if (const std::string* reason = std::get_if<std::string>(&planned)) throw pybind11::value_error(*reason);
  const auto& plan = std::get<maps_room::Plan>(planned);
  pybind11::dict facts;
  facts["team"] = "cluster";
  facts["blocks"] = plan.layout.blocks;
  facts["teams"] = plan.clusters;
  facts["rounds"] = plan.rounds;
  facts["shared_bytes"] = plan.shared_bytes;
  facts["step_us"] = plan.step_microseconds;
  std::vector<std::map<std::string, int>> joints;
  for (int l = 1; l < plan.layout.layers; ++l) {
    const maps_room::Joint& joint = plan.layout.joint[l];
    const maps_room::Layer &below = plan.layout.layer[l - 1], &above = plan.layout.layer[l];
    joints.push_back({{"kernel", joint.kernel},
                      {"groups", joint.groups},
                      {"up_items", joint.tile_sets << joint.up_shift},
                      {"up_parts", 1 << joint.up_shift},
                      {"of_up", joint.of_up},
                      {"places", joint.window_height * joint.window_width},
                      {"patches", joint.patches},
                      {"down_parts", 1 << joint.down_shift},
                      {"of_down", joint.of_down},
                      {"own_below", below.most_own * below.height * below.width},
                      {"own_above", above.most_own * above.height * above.width},
                      {"units_above", above.channels * above.height * above.width},
                      {"packs_below", below.height * below.packs_of_row(16 / number_bytes)}});
  }
  facts["joints"] = joints;
  return facts;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  m.def("build_info", &build_info, "What this library was built for and which kernels it runs, as a dict of strings.");
  m.def(
      "check_writable",
      [](const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases,
         const std::vector<at::Tensor>& feedback) {
        ceprop::check_writable(
            ceprop::named({{"weights", weights}, {"biases", biases}, {"feedback_weights", feedback}}));
      },
      py::arg("weights"), py::arg("biases"), py::arg("feedback_weights"),
      "ValueError if parameters that are to be changed in place share memory, as cep_step has it.");
  py::class_<ceprop::TeamSize>(m, "TeamSize", "How many threads calls of one kind get, on any clock.")
      .def(py::init<int>(), py::arg("most"))
      .def("threads", &ceprop::TeamSize::threads)
      .def("note", &ceprop::TeamSize::note, py::arg("seconds"), py::arg("now"), py::arg("calls") = 1)
      .def("gave_up_threads", &ceprop::TeamSize::gave_up_threads);
  m.def("allowed_threads", &ceprop::allowed_threads, "CPUs that this process may use at once.");
  ceprop::bind_eager_ops(m);
  m.def("step_costs", &step_costs, py::kw_only(), py::arg("widths"), py::arg("readout"), py::arg("free_feedback"),
        py::arg("asynchronous"), py::arg("symmetric"), py::arg("accumulate"), py::arg("shared_update"),
        py::arg("weight_decay"), py::arg("literal_input"), py::arg("batch"), py::arg("free_steps"),
        py::arg("nudged_steps"), py::arg("number_bytes"), py::arg("continual"), py::arg("update"),
        "(operations, bytes) of the parts of a learning step by name, and the forms chosen.");
  m.def("contrast_terms", &contrast_terms, py::kw_only(), py::arg("free_feedback"), py::arg("shared_update"),
        py::arg("of_input"), py::arg("of_feedback"),
        "Whether a contrast has the term of the layer above that moves, and that of the layer below.");
#ifdef CEPROP_WITH_CUDA
  m.def("cuda_device", &cuda_device, py::arg("index"), "What launch_plan asks of a device, of this one.");
#endif
  m.def("launch_plan", &launch_plan, py::kw_only(), py::arg("multiprocessors"), py::arg("shared_bytes"),
        py::arg("cluster_blocks"), py::arg("clusters"), py::arg("widths"), py::arg("asynchronous"), py::arg("batch"),
        py::arg("number_bytes"), py::arg("continual"), py::arg("tolerance"),
        "How teams of a CUDA device's blocks would run a call, as a dict.");
  m.def("map_plan", &map_plan, py::kw_only(), py::arg("multiprocessors"), py::arg("shared_bytes"),
        py::arg("cluster_blocks"), py::arg("clusters"), py::arg("maps"), py::arg("convolutions"), py::arg("pools"),
        py::arg("readout"), py::arg("free_feedback"), py::arg("asynchronous"), py::arg("batch"),
        py::arg("number_bytes"),
        "How clusters of a CUDA device would take the phases of a chain with convolutions, as a dict.");
}
