"""Teams of blocks on a GPU: their numbers against the reference, and streams, graphs, devices and errors."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, results_of
from backend_calls import CALLS, flat
from emulated_teams import NETWORKS, team_runs
from golden_steps import assert_step_is_golden
from known_devices import KERNELS, OfKernel
from large_logits import draws as draws_of_large_logits
from last_places import assert_activation_is_right
from not_finite_numbers import assert_ops_store_nothing
from on_gpu import GPU, OnGpu, forced, learned, mapped, no_waiting, there
from op_arguments import OPS, every_op, keywords, positional, torch_ops
from problems import GOLDEN_NAMES, load_golden, random_problem, relative_error
from settling import FAMILIES, LEARNING, LIMIT, SIZES, assert_tolerances_are_exact, learn
from settling import name_of as name_of_settings
from tied_copies import assert_both_copies_stay_the_same
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of, name_of

import ceprop_cuda as cep
from ceprop_cuda import backends, ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

pytestmark = pytest.mark.cuda

SECOND_GPU = "cuda:1"
LONG, SHORT = 10**9, 10**8  # clock cycles, about half a second and a tenth of that


@pytest.fixture(autouse=True)
def by_teams() -> Iterator[None]:
    """What PyTorch's operators run is in test_cuda_graphs.py."""
    with forced("teams"):
        yield


# --- The same as the reference


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", NETWORKS, ids=name_of)
def test_agreement(variant: dict[str, Any], dtype: torch.dtype) -> None:
    # As in test_kernels.check.
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 1000
    draws = [build(variant, dtype, seed) for seed in range(5 if few else 1)]
    assert_agreement(partial(team_runs), draws, module=OnGpu())


def name_of_kernel(kernel: OfKernel) -> str:
    return f"{kernel.team}-of-{kernel.samples}-then-{kernel.moving_team}"


def problem_of(kernel: OfKernel, feedback: str = "tied") -> tuple[Any, Nudge]:
    """A problem that runs by this kernel on an H100; skips where another kernel runs it."""
    dtype = torch.float64 if kernel.samples == 2 else torch.float32
    problem, nudge = build({**VARIANTS[0], "shape": (kernel.widths, kernel.batch), "feedback": feedback}, dtype)
    for continual in (False, True):
        plan = ops.launch_plan(*there((problem.circuit, problem.x)), continual=continual)
        found = plan.get("team"), plan.get("samples"), plan.get("moving_team", kernel.moving_team)
        if torch.cuda.get_device_capability() != (9, 0) and found != kernel[:3]:
            pytest.skip(f"not here: {plan}")
        assert found == kernel[:3]
    return problem, nudge


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("kernel", KERNELS, ids=name_of_kernel)
def test_every_kernel(kernel: OfKernel, feedback: str) -> None:
    """With free feedback C-EP has a gate."""
    assert_agreement(partial(team_runs), [problem_of(kernel, feedback)], module=OnGpu())


@pytest.mark.parametrize("batch", [1, 20, 64, 300])
@pytest.mark.parametrize("shape", [(784, 512, 10), (784, 512, 512, 10)], ids=str)
def test_networks_of_the_papers(shape: tuple[int, ...], batch: int) -> None:
    draws = [build({**VARIANTS[0], "shape": (shape, batch)}, torch.float32)]
    assert_agreement(partial(team_runs), draws, module=OnGpu())


@pytest.mark.parametrize("gate", ["unit", "connection"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gates_of_continual_ep_agree(symmetric: bool, gate: str) -> None:
    def run(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
        settings = {"free_steps": 6, "nudged_steps": 4, "symmetric": symmetric, "gate": gate, "weight_decay": 0.1}
        return results_of(module.cep_step(copy_of(circuit), x, nudge, **settings, lr=[0.05, 0.02, 0.01]), circuit)

    for dtype in TOLERANCES:
        problem = random_problem((40, 33, 20, 10), 20, feedback="free", dtype=dtype)
        assert_agreement(run, [(problem, Nudge(problem.target, 0.4))], module=OnGpu())


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_cases(name: str) -> None:
    if "gate" in (settings := load_golden(name).settings) and "lr" not in settings:
        pytest.skip("teams have no gate of EP between the ends of its phases")
    assert_step_is_golden(name, OnGpu())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(activation: str, dtype: torch.dtype) -> None:
    assert_activation_is_right(OnGpu(), activation, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_agreement_on_the_softmax_of_large_logits(dtype: torch.dtype) -> None:
    assert_agreement(partial(team_runs), draws_of_large_logits(dtype, readout=False)[1], module=OnGpu())


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_both_copies_of_tied_weights_stay_the_same(schedule: str) -> None:
    assert_both_copies_stay_the_same(OnGpu(), schedule)


# --- Phases that end early


@pytest.mark.parametrize("family", FAMILIES, ids=name_of_settings)
def test_phases_relax_for_as_many_steps(family: dict[str, Any]) -> None:
    circuit, x, y = random_problem(SIZES, 23, **family)
    for tolerance in (1e-2, 1e-4, 1e-8):
        wanted, found = (m.relax(circuit, x, LIMIT, None, Nudge(y, 0.4), tolerance) for m in (reference, OnGpu()))
        assert found.steps.tolist() == wanted.steps.tolist()
        for a, b in zip(found.states, wanted.states, strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]


@pytest.mark.parametrize("settings", LEARNING, ids=name_of_settings)
@pytest.mark.parametrize("family", FAMILIES, ids=name_of_settings)
def test_phases_learn_in_as_many_steps(family: dict[str, Any], settings: dict[str, Any]) -> None:
    problem = random_problem(SIZES, 23, **family)
    steps: list[list[int]] = []

    def run(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
        ran = learn(module, circuit, x, nudge, symmetric=True, **settings)
        steps.append(ran.steps.tolist())
        return results_of(ran, circuit)

    assert_agreement(run, [(problem, Nudge(problem.target, 0.4))], module=OnGpu())
    assert all(made == steps[0] for made in steps)
    assert all(4 < count < LIMIT for count in steps[0])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_phases_end_exactly_at_their_tolerance(dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(OnGpu(), dtype)


# --- What the ops promise besides


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of_kernel)
def test_bitwise_the_same_from_run_to_run(kernel: OfKernel) -> None:
    problem, nudge = problem_of(kernel)
    first, *others = (team_runs(OnGpu(), problem.circuit, problem.x, nudge) for _ in range(3))
    for run in others:
        for kind, tensors in first.items():
            assert all(map(torch.equal, tensors, run[kind])), kind


@pytest.mark.parametrize("network", ["tied", "free", "energy"])
def test_a_step_that_is_not_finite_stores_nothing(network: str) -> None:
    assert_ops_store_nothing(OnGpu(), network)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of_kernel)
def test_no_kernel_learns_from_what_is_not_finite(kernel: OfKernel) -> None:
    problem, nudge = problem_of(kernel)
    circuit, x = copy_of(problem.circuit), problem.x.clone()
    x[-1, -1] = float("nan")
    phases = {"free_steps": 4, "nudged_steps": 2}
    ep = OnGpu().ep_step(circuit, x, nudge, **phases)
    continual = OnGpu().cep_step(circuit, x, nudge, **phases, lr=[0.1] * len(circuit.weights))
    assert ep.steps.tolist() == continual.steps.tolist() == [-1, -1]
    assert not any(gradient.any() for gradient in ep.gradients.parameters())
    assert all(map(torch.equal, circuit.parameters(), problem.circuit.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(torch_ops, op).default, there(positional(op, dtype)), keywords(op))


def test_any_strides() -> None:
    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1)[..., 0]

    circuit, x, target = there(random_problem((6, 9, 5), 4, feedback="free"))
    views = mapped(strided, circuit)
    assert not any(p.is_contiguous() for p in views.parameters())
    expected = every_op(x, circuit, Nudge(target, 0.3))
    got = every_op(strided(x), views, Nudge(strided(target), 0.3))
    assert all(map(torch.equal, expected + circuit.parameters(), got + views.parameters()))


FUSED_CALLS = [name for name in CALLS if name != "BPTT"]  # whose unrolled steps are the reference's


# A network and a batch for each kind of team in float64, and one for PyTorch's operators.
KINDS = {one.team: (one.widths, one.batch) for one in KERNELS if one.samples == 2} | {"convolutions": None}


def small_problem(kind: str = "block") -> tuple[cep.Network, Tensor, Tensor]:
    """A network, inputs and class indices, in float64 on the GPU."""
    if kind == "convolutions":
        net, batch = cep.convnet((2, 9, 8), (3, 4), 3, 1, "ma", (3,)), 5
    else:
        sizes, batch = KINDS[kind]
        net = cep.mlp(*sizes)
    x, y = torch.rand(batch, *net.input_shape, dtype=torch.float64), torch.arange(batch) % net.classes
    return net.to(GPU, torch.float64), x.to(GPU), y.to(GPU)


@pytest.fixture
def by_its_engine(kind: str) -> Iterator[None]:
    with forced("graph" if kind == "convolutions" else "teams"):
        yield


@pytest.mark.usefixtures("by_its_engine")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", FUSED_CALLS)
def test_no_call_waits_for_the_device(call: str, kind: str) -> None:
    net, x, y = small_problem(kind)
    CALLS[call](net, x, y, "fused")  # the first call asks what the device is
    with no_waiting():
        CALLS[call](net, x, y, "fused")
        net(x)


@pytest.mark.usefixtures("by_its_engine")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", FUSED_CALLS)
def test_work_goes_to_the_current_stream(call: str, kind: str) -> None:
    net, x, y = small_problem(kind)
    run = CALLS[call]
    expected_net, warm = copy.deepcopy(net), copy.deepcopy(net)
    expected = flat(run(expected_net, x, y, "fused"))
    late, side = torch.zeros_like(x), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(warm, late, y, "fused")  # memory is asked for, which may wait
    torch.cuda.synchronize()

    torch.cuda._sleep(LONG)
    default_stream = torch.cuda.current_stream().record_event()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SHORT)
        late.copy_(x)  # work on another stream would find zeros
        got = flat(run(net, late, y, "fused"))
    side.synchronize()
    assert not default_stream.query()
    assert all(map(torch.equal, got + learned(net), expected + learned(expected_net)))


@pytest.mark.usefixtures("by_its_engine")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", FUSED_CALLS)
def test_calls_in_a_cuda_graph(call: str, kind: str) -> None:
    net, x, y = small_problem(kind)
    run = CALLS[call]
    run(net, x, y, "fused")  # the first call asks what the device is
    net.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(net, x, y, "fused")
    x.mul_(0.5)  # what the graph has not seen
    expected_net = copy.deepcopy(net)
    for _ in range(2):
        graph.replay()
        expected_net.zero_grad()  # the captured call sets gradients
        expected = run(expected_net, x, y, "fused")
    assert all(map(torch.equal, flat(result) + learned(net), flat(expected) + learned(expected_net)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_device_that_is_not_the_current_one() -> None:
    variant = VARIANTS[0]
    assert_agreement(partial(team_runs), [build(variant, torch.float64)], module=OnGpu(device=SECOND_GPU))
    assert torch.cuda.current_device() == 0


# --- The public API


@pytest.mark.parametrize("kind", ["block", "convolutions"])
@pytest.mark.parametrize("call", ["nudged relax", "EP", "CEP"])
def test_class_indices_are_one_hot_targets(call: str, kind: str) -> None:
    by_index, x, y = small_problem(kind)
    by_float = copy.deepcopy(by_index)
    one_hot = torch.nn.functional.one_hot(y, by_index.classes).double()
    results = [flat(CALLS[call](net, x, target, "fused")) for net, target in ((by_index, y), (by_float, one_hot))]
    assert all(map(torch.equal, results[0] + learned(by_index), results[1] + learned(by_float)))


def test_class_indices_out_of_range_end_in_an_assertion_on_the_device() -> None:
    program = """
import torch, ceprop_cuda as cep
net, x, y = cep.mlp(4, 3).cuda(), torch.rand(2, 4).cuda(), torch.tensor([0, 3]).cuda()
net.relax(x, 2, target=y, beta=0.5, backend="fused")
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr


# --- What teams do not run


def small_dense(**settings: Any) -> tuple[Circuit, Tensor, Nudge]:
    problem = there(random_problem((6, 9, 5), 4, **settings))
    return problem.circuit, problem.x, Nudge(problem.target, 0.3)


def test_ep_that_teams_refuse() -> None:
    """PyTorch's operators run it."""
    circuit, x, nudge = small_dense(feedback="free")
    settings: dict[str, Any] = {"free_steps": 6, "nudged_steps": 3, "gate": "unit"}
    with pytest.raises(ValueError, match="engine must not be 'teams': teams have no gate of EP between the ends"):
        ops.ep_step(circuit, x, nudge, **settings)
    with forced("auto"):
        found = there(ops.ep_step(circuit, x, nudge, **settings), "cpu")
    wanted = reference.ep_step(*there((circuit, x, nudge), "cpu"), **settings)
    for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
        assert relative_error(a, b) < 1e-9


REFUSED: dict[str, tuple[Any, str]] = {
    "deep": (lambda: cep.mlp(*[4] * 10), "the CUDA kernels take networks of at most 8 layers, got 9"),
    "wide": (lambda: cep.mlp(4, 4096, 4096, 3), "do not fit into the shared memory of the blocks"),
    "readout": (lambda: cep.mlp(4, 5, 3, readout="softmax"), "teams have no readout"),
    "convolutions": (lambda: cep.convnet((1, 8, 8), (2, 3), 2, fc=(3,)), "kernels of 3 x 3 or 5 x 5"),
    "free convolutions": (lambda: cep.convnet((1, 8, 8), (2, 3), 3, fc=(3,), feedback="free"), "take tied weights"),
}


@pytest.mark.parametrize("network", REFUSED)
def test_networks_that_teams_refuse(network: str) -> None:
    """PyTorch's operators run them."""
    make, message = REFUSED[network]
    net = make().double()
    on_gpu, x = copy.deepcopy(net).to(GPU), torch.rand(3, *net.input_shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"engine must not be 'teams': .*{message}"):
        on_gpu.relax(there(x), 6)
    with pytest.raises(backends.FusedUnavailable, match="engine='teams' is for teams of a GPU's blocks"):
        on_gpu.relax(there(x), 6, backend="fused", engine="teams")
    with forced("auto"):
        assert ops.launch_plan(on_gpu.circuit(), there(x)) == {"engine": "graph"}
        states = there(on_gpu.relax(there(x), 6, backend="fused"), "cpu")
    for a, b in zip(states, net.relax(x, 6, backend="reference"), strict=True):
        assert relative_error(a, b) < 1e-9


def test_precisions_and_engines_that_are_not_for_this() -> None:
    circuit, x, _ = small_dense(dtype=torch.float32)
    with pytest.raises(ValueError, match="engine must not be 'teams': teams have precision 'exact' alone"):
        ops.relax(circuit, x, 2, precision="tf32")
    net = cep.mlp(6, 9, 5).to(GPU)
    with pytest.raises(backends.FusedUnavailable, match="this tensor is on a GPU"):
        net.relax(x, 2, backend="fused", engine="fused")
    with pytest.raises(backends.FusedUnavailable, match="precision='tf32' takes float32 on a GPU"):
        net.double().relax(x.double(), 2, backend="fused", precision="tf32")
