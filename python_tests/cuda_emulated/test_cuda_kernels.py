"""The CUDA kernels without a GPU: their unchanged source under cuda_emulation, against the reference and its checks."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import combinations, product
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, errors, results_of
from emulated_kernels import (
    BLOCKS,
    CALLS,
    KERNELS,
    KERNELS_AND_CALLS,
    NETWORKS,
    ROTATION,
    Device,
    call_every_op,
    columns,
    devices,
    kernels_of,
    least_memory,
)
from golden_steps import assert_step_is_golden
from kernel_runs import all_runs, rates
from large_logits import assert_softmax_is_right
from last_places import BOUNDS, assert_activation_is_right, largest_error
from not_finite_numbers import assert_ops_store_nothing
from problems import GOLDEN_WITHOUT_GATE, random_problem, relative_error
from settling import FAMILIES, LIMIT, SIZES, TOLERANCE, assert_tolerances_are_exact
from settling import name_of as name_of_settings
from tied_copies import assert_both_copies_stay_the_same
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of, name_of

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("cuda_kernels"))


# --- The same as the reference


def name_of_case(value: Any) -> str:
    return name_of(value) if isinstance(value, dict) else str(value).removeprefix("torch.")


def test_the_rotation_meets_every_pair() -> None:
    seen = {pair for case in ROTATION for pair in combinations(columns(*case), 2)}
    possible = {
        pair
        for variant in NETWORKS
        for kernel, blocks, dtype in product(kernels_of(variant), BLOCKS, TOLERANCES)
        for pair in combinations(columns(kernel, blocks, dtype, variant), 2)
    }
    assert seen >= possible


@pytest.mark.parametrize(("kernel", "blocks", "dtype", "variant"), ROTATION, ids=name_of_case)
def test_agreement(device: Device, kernel: str, blocks: int, dtype: torch.dtype, variant: dict[str, Any]) -> None:
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 300  # see test_kernels.check
    draws = [build(variant, dtype, seed) for seed in range(3 if few else 1)]
    assert_agreement(partial(all_runs, variant), draws, module=device(kernel, blocks))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(device: Device, activation: str, dtype: torch.dtype) -> None:
    """With reciprocals that are one unit in the last place off, or none, as the emulation has them."""
    assert_activation_is_right(device("streamed-literal"), activation, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", BOUNDS)
def test_the_exponential_has_all_its_terms(device: Device, activation: str, dtype: torch.dtype) -> None:
    assert largest_error(device("streamed-literal"), activation, dtype) < BOUNDS[activation]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("readout", [False, True])
def test_softmax_of_large_logits(device: Device, readout: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(device("streamed-low_rank"), dtype, readout)


@pytest.mark.parametrize("kernel", [*KERNELS[::2], "streamed-low_rank"])
@pytest.mark.parametrize("name", GOLDEN_WITHOUT_GATE)
def test_golden_cases(device: Device, name: str, kernel: str) -> None:
    assert_step_is_golden(name, device(kernel, 16))


@pytest.mark.parametrize("kernel", ["resident-literal", "streamed-low_rank", "cluster-literal"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [(((784, 64, 10), 20), torch.float64), (((40, 31, 100, 10), 33), torch.float32)], ids=str
)
def test_little_shared_memory(device: Device, shape: tuple, dtype: torch.dtype, kernel: str) -> None:
    """A product's depth comes in smaller parts."""
    variant = {**VARIANTS[0], "shape": shape}
    problem, nudge = build(variant, dtype)
    ample, tight = device(kernel), device(kernel, shared_bytes=least_memory(device, kernel, problem))
    assert_agreement(partial(all_runs, variant), [(problem, nudge)], module=tight)
    states = [d.relax(problem.circuit, problem.x, 7).states for d in (ample, tight)]
    assert not all(map(torch.equal, *states))  # added up in another order


# --- Phases that end early


@pytest.mark.parametrize("place", ["grid", "cluster"])
@pytest.mark.parametrize("family", FAMILIES, ids=name_of_settings)
def test_phases_end_where_those_of_the_reference_do(device: Device, family: dict[str, Any], place: str) -> None:
    circuit, x, y = random_problem(SIZES, 23, **family)
    nudge, seen = Nudge(y, 0.4), set()
    weights = "cluster" if place == "cluster" else "resident" if family["dynamics"] == "energy" else "streamed"
    emulated = device(f"{weights}-low_rank")
    for tolerance, of_phase in ((1e-2, nudge), (1e-4, None), (1e-6, nudge)):
        wanted, found = (m.relax(circuit, x, LIMIT, None, of_phase, tolerance) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.states, wanted.states, strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
        seen.add(wanted.steps.item())
    assert len(seen) > 1
    phases: dict[str, Any] = {"free_steps": LIMIT, "nudged_steps": LIMIT, "tolerance": TOLERANCE}
    for symmetric in (False, True):
        settings = {**phases, "lr": [0.05, 0.02, 0.01], "symmetric": symmetric}
        wanted, found = (m.cep_step(copy_of(circuit), x, nudge, **settings) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.circuit.parameters(), wanted.circuit.parameters(), strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
    wanted, found = (m.ep_step(circuit, x, nudge, **phases, symmetric=True) for m in (reference, emulated))
    assert torch.equal(found.steps, wanted.steps)
    for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
        assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"] / nudge.beta


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kernel", ["streamed-literal", "cluster-literal"])
def test_tolerances_are_exact(device: Device, kernel: str, dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(device(kernel), dtype)


@pytest.mark.parametrize("kernel", ["resident-literal", "cluster-literal"])
def test_a_tolerance_of_zero_changes_nothing_but_the_time(device: Device, kernel: str) -> None:
    circuit, x, _ = random_problem(SIZES, 23, schedule="asynchronous")
    found = device(kernel).relax(circuit, x, LIMIT, tolerance=0)
    assert found.steps.item() < LIMIT
    assert all(map(torch.equal, found.states, device(kernel).relax(circuit, x, LIMIT).states))


@pytest.mark.parametrize("kernel", ["streamed-literal", "cluster-literal"])
def test_states_that_are_not_finite_never_settle(device: Device, kernel: str) -> None:
    circuit, x, _ = random_problem(SIZES, 7, activation="linear")
    emulated = device(kernel)
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    x[-1, -1] = float("nan")
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


# --- The same bits


@pytest.mark.parametrize(
    ("kernel", "what", "precision"),
    [
        *((*chosen, "exact") for chosen in KERNELS_AND_CALLS),
        *product(KERNELS[::2], ["readout", "asynchronous energy"], ["tf32", "bf16"]),
    ],
)
def test_every_order_of_the_threads_gives_the_same_bits(device: Device, kernel: str, what: str, precision: str) -> None:
    emulated = device(kernel, precision=precision)  # under another seed at each call
    first, *others = (call_every_op(emulated, torch.float32, *CALLS[what]) for _ in range(3))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_both_copies_of_tied_weights_stay_the_same(device: Device, kernel: str, schedule: str) -> None:
    assert_both_copies_stay_the_same(device(kernel), schedule)


@pytest.mark.parametrize("network", ["tied", "free", "energy", "readout"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_that_is_not_finite_stores_nothing(device: Device, kernel: str, network: str) -> None:
    assert_ops_store_nothing(device(kernel), network)


# --- Rounded operands

# The largest relative errors against the float64 reference after 8 free steps and 5 nudged ones, of untrained networks
# 40-100-31-10 and 784-64-10 in prototypical (sigmoid) and energy dynamics (hard sigmoid), with 20 and 33 samples:
#            states    EP's gradients    C-EP's parameters
#   exact    1.4e-7    2.6e-6            9.8e-8
#   tf32     1.8e-4    1.8e-3            5.0e-5
#   bf16     7.6e-3    3.4e-2            3.9e-4
# The same wherever weights and states lie. The bounds are two to four times that. The states' least errors were 1.5e-4
# and 1.2e-3: one below a third of them would mean that operands were not rounded.
ROUNDED = {
    "tf32": {"states": 5e-4, "gradients": 5e-3, "parameters": 2e-4, "least": 5e-5},
    "bf16": {"states": 2e-2, "gradients": 1e-1, "parameters": 1e-3, "least": 4e-4},
}


def run_rules(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    phases = {"free_steps": 8, "nudged_steps": 5}
    ep = results_of(module.ep_step(circuit, x, nudge, **phases), circuit)
    cep = results_of(module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit)), circuit)
    return {"ep states": ep["states"], "gradients": ep["gradients"], **cep}


@pytest.mark.parametrize(
    ("dynamics", "activation", "shape"),
    [("prototypical", "sigmoid", ((40, 100, 31, 10), 20)), ("energy", "hard_sigmoid", ((784, 64, 10), 33))],
)
@pytest.mark.parametrize("kernel", ["resident-low_rank", "streamed-literal", "cluster-literal"])
@pytest.mark.parametrize("precision", ROUNDED)
def test_rounded_operands(
    device: Device, precision: str, kernel: str, dynamics: str, activation: str, shape: tuple
) -> None:
    variant = {**VARIANTS[0], "shape": shape, "dynamics": dynamics, "activation": activation}
    found = errors(run_rules, *build(variant, torch.float32), device(kernel, 16, precision=precision))
    bounds = ROUNDED[precision]
    for kind, (error, _, _) in found.items():
        assert error < bounds[kind.split()[-1]], kind
    assert found["states"][0] > bounds["least"]
    assert found["ep states"][0] > bounds["least"]
