"""The ops on a GPU: the kernels' numbers against the reference, and streams, graphs, devices and training."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, errors, results_of
from backend_calls import BATCH, CALLS, flat, mlp
from backend_calls import batch as small_batch
from emulated_teams import NETWORKS as TEAM_NETWORKS
from emulated_teams import team_runs
from golden_steps import assert_step_is_golden
from kernel_runs import all_runs, rates, run_relax
from known_devices import PLACES
from last_places import assert_activation_is_right
from not_finite_numbers import NETWORKS, assert_ops_store_nothing
from on_gpu import GPU, OnGpu, forced, learned, mapped, no_waiting, there
from op_arguments import OPS, every_op, keywords, positional, torch_ops
from problems import GOLDEN_WITHOUT_GATE, random_problem, relative_error
from settling import FAMILIES, LEARNING, LIMIT, SIZES, learn
from settling import name_of as name_of_settings
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of, name_of

import ceprop_cuda as cep
from ceprop_cuda import backends, ops
from ceprop_cuda.choices import EngineName
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

pytestmark = pytest.mark.cuda

SECOND_GPU = "cuda:1"
LONG, SHORT = 10**9, 10**8  # clock cycles, about half a second and a tenth of that


@pytest.fixture(autouse=True)
def one_launch() -> Iterator[None]:
    """A library's calls, networks with convolutions among them, are in test_cuda_graphs.py."""
    with forced("launch"):
        yield


# --- The same as the reference


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_agreement(variant: dict[str, Any], dtype: torch.dtype) -> None:
    # As in test_kernels.check.
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 1000
    draws = [build(variant, dtype, seed) for seed in range(5 if few else 1)]
    assert_agreement(partial(all_runs, variant), draws, module=OnGpu())


@pytest.mark.parametrize("name", GOLDEN_WITHOUT_GATE)
def test_golden_cases(name: str) -> None:
    assert_step_is_golden(name, OnGpu())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(activation: str, dtype: torch.dtype) -> None:
    assert_activation_is_right(OnGpu(), activation, dtype)


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


NUMBERS = [("exact", torch.float64), ("exact", torch.float32), ("tf32", torch.float32), ("bf16", torch.float32)]
ROUNDING = {"exact": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # of a factor
# Times the rounding. Seen in the reference with rounded factors: 0.14 to 0.33, 2 to 8, 0.003 to 0.09.
GRANTED = {"states": 1.0, "gradients": 16.0, "parameters": 0.5}


def place_of(circuit: Circuit, x: Tensor, precision: str) -> str:
    """One of PLACES, or why there is none."""
    try:
        plan = ops.launch_plan(*there((circuit, x)), precision)
    except ValueError as error:
        return str(error)
    return plan["exchange"] if plan["resident"] else "streamed"


def one_of_each(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    phases = {"free_steps": 4, "nudged_steps": 3}
    ep = module.ep_step(circuit, x, nudge, **phases)
    continual = module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit))
    of_steps = {"ep": results_of(ep, circuit), "cep": results_of(continual, circuit)}
    results = {f"{op} {kind}": found for op, kinds in of_steps.items() for kind, found in kinds.items()}
    return results | {"relax states": run_relax(module, circuit, x, nudge)["states"]}


@pytest.mark.parametrize(("precision", "dtype"), NUMBERS)
@pytest.mark.parametrize("place", PLACES)
def test_every_kernel(place: str, precision: str, dtype: torch.dtype) -> None:
    problem = random_problem(*PLACES[place], dtype=dtype)
    actual_place = place_of(problem.circuit, problem.x, precision)
    if torch.cuda.get_device_capability() != (9, 0) and actual_place != place:
        pytest.skip(f"not here: {actual_place}")
    assert actual_place == place
    found = errors(one_of_each, problem, Nudge(problem.target, 0.4), OnGpu(precision))
    for kind, (error, relative, floor) in found.items():
        what = kind.split()[-1]
        assert error <= relative + floor + GRANTED.get(what, 0) * ROUNDING[precision], kind
        if what == "states":  # the tensor cores are used
            assert error >= 0.02 * ROUNDING[precision], kind


def test_tensor_cores_take_float32_alone() -> None:
    net, (x, _) = mlp().to(GPU), there(small_batch())
    with pytest.raises(backends.FusedUnavailable, match="take float32 numbers, got float64"):
        net.relax(x, 2, backend="fused", precision="tf32")


# --- What the ops promise besides


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", [*VARIANTS[::7], {**VARIANTS[0], "shape": PLACES["grid"]}], ids=name_of)
def test_bitwise_the_same_from_run_to_run(variant: dict[str, Any], dtype: torch.dtype) -> None:
    problem, nudge = build(variant, dtype)
    first, *others = (all_runs(variant, OnGpu(), problem.circuit, problem.x, nudge) for _ in range(3))
    for run in others:
        for kind, tensors in first.items():
            assert all(map(torch.equal, tensors, run[kind])), kind


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "convolutions"])
def test_a_step_that_is_not_finite_stores_nothing(network: str) -> None:
    assert_ops_store_nothing(OnGpu(), network)


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


def small_problem(kind: str = "dense") -> tuple[cep.Network, Tensor, Tensor]:
    """A network, dense or with convolutions, inputs and class indices, in float64 on the GPU."""
    x, y = there(small_batch())
    if kind == "dense":
        return mlp().to(GPU), x, y
    net = cep.convnet((2, 9, 8), (3, 4), 3, 1, "ma", (3,)).to(GPU, torch.float64)
    return net, torch.rand(BATCH, 2, 9, 8, device=GPU, dtype=torch.float64), y


KINDS: dict[str, EngineName] = {"dense": "launch", "convolutions": "graph"}  # and by what they run


@pytest.fixture
def by_its_engine(kind: str) -> Iterator[None]:
    with forced(KINDS[kind]):
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
    assert_agreement(partial(all_runs, variant), [build(variant, torch.float64)], module=OnGpu(device=SECOND_GPU))
    assert torch.cuda.current_device() == 0


# --- The public API


@pytest.mark.parametrize("call", ["nudged relax", "EP", "CEP"])
def test_class_indices_are_one_hot_targets(call: str) -> None:
    by_index, x, y = small_problem()
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


def test_what_does_not_run_in_one_launch() -> None:
    """Convolutions, more than 8 layers, gates, and layers joined otherwise than in a chain go to a library's calls."""
    deep, x = cep.mlp(*[4] * 10, feedback="free"), torch.rand(3, 4)
    y = torch.tensor([0, 3, 1])
    convnet, image = cep.convnet((1, 6, 6), (2,), 3, pools="m", fc=(3,)).to(GPU), torch.rand(2, 1, 6, 6)
    with pytest.raises(ValueError, match="engine must not be 'launch': the fused CUDA kernels take dense layers"):
        convnet.relax(there(image), 3)
    with pytest.raises(backends.FusedUnavailable, match="on a GPU they take dense layers"):
        convnet.relax(there(image), 3, backend="fused", engine="launch")
    obstacle = "the CUDA kernels take networks of at most 8 layers, got 9"
    with pytest.raises(ValueError, match=f"engine must not be 'launch': {obstacle}"):
        copy.deepcopy(deep).to(GPU).relax(there(x), 12)
    with forced("auto"):
        for precision in ("exact", "tf32"):
            for s, wanted in zip(
                copy.deepcopy(deep).to(GPU).relax(there(x), 12, backend="fused", precision=precision),
                deep.relax(x, 12, backend="reference"),
                strict=True,
            ):
                assert relative_error(s.cpu(), wanted) < 1e-5
        on_gpu = copy.deepcopy(deep).to(GPU)
        cep.EP(on_gpu, 12, 4, 0.3, backend="fused", gate="unit").backward(there(x), there(y))
        cep.EP(deep, 12, 4, 0.3, backend="reference", gate="unit").backward(x, y)
        for p, q in zip(on_gpu.parameters(), deep.parameters(), strict=True):
            assert relative_error(p.grad.cpu(), q.grad) < 1e-3
        assert ops.launch_plan(on_gpu.circuit(), there(x)) == {"exchange": "library"}
        with pytest.raises(backends.FusedUnavailable, match=obstacle):
            on_gpu.relax(there(x), 12, backend="fused", precision="bf16")


# --- Teams of blocks


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", TEAM_NETWORKS, ids=name_of)
def test_agreement_by_teams(variant: dict[str, Any], dtype: torch.dtype) -> None:
    draws = [build(variant, dtype, seed) for seed in range(3 if dtype == torch.float32 else 1)]
    with forced("teams"):
        assert_agreement(partial(team_runs), draws, module=OnGpu())


@pytest.mark.parametrize("batch", [1, 20, 64, 300])
@pytest.mark.parametrize("shape", [(784, 512, 10), (784, 512, 512, 10)], ids=str)
def test_networks_of_the_papers_by_teams(shape: tuple[int, ...], batch: int) -> None:
    draws = [build({**VARIANTS[0], "shape": (shape, batch)}, torch.float32)]
    with forced("teams"):
        assert_agreement(partial(team_runs), draws, module=OnGpu())


def test_teams_learn_nothing_from_what_is_not_finite() -> None:
    problem, nudge = build(VARIANTS[0], torch.float32)
    problem.x[-1, -1] = float("nan")
    with forced("teams"):
        ran = OnGpu().ep_step(problem.circuit, problem.x, nudge, free_steps=4, nudged_steps=2)
    assert ran.steps.tolist() == [-1, -1]
    assert not any(gradient.any() for gradient in ran.gradients.parameters())
