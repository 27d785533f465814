"""The fused kernels against the float64 reference: every variant, instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, results_of
from last_places import BOUNDS, largest_error
from problems import relative_error
from torch import Tensor
from variants import SHAPES, build, copy_of, name_of, network_variants

from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Dynamics, Nudge, rho

VARIANTS = network_variants()


def run_relax(module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    free = module.relax(circuit, x, 7).states
    return {"states": free + module.relax(circuit, x, 4, free, nudge).states}


def rates(circuit: Circuit) -> list[float]:
    """Rates that move each drive by a like amount: with 784 inputs at 0.02, learning itself would be unstable and turn
    rounding into large errors on either side. A convolution's contrast sums over about a hundred places."""
    inputs = [w.shape[1] if w.ndim == 2 else 100 * w[0].numel() for w in circuit.weights]
    return [0.3 * (connection + 1) / max(16, count) for connection, count in enumerate(inputs)]


def all_runs(variant: dict[str, Any], module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of call that the variant's network takes, under one name each."""
    results = {f"relax {key}": value for key, value in run_relax(module, circuit, x, nudge).items()}
    shared = (False, True) if variant["feedback"] == "free" else (False,)
    for symmetric in (False, True):
        for shared_update in shared:
            common = {"symmetric": symmetric, "shared_update": shared_update}
            phases = {"free_steps": 8, "nudged_steps": 5, **common}
            for extra in (False, True):
                moved, learning = copy_of(circuit), {"lr": rates(circuit), "weight_decay": 0.1 * extra}
                for name, ran in (
                    ("ep", module.ep_step(circuit, x, nudge, **phases, accumulate=extra)),
                    ("cep", module.cep_step(moved, x, nudge, **phases, **learning)),
                ):
                    found = results_of(ran, circuit)
                    results |= {f"{name} {common} {extra} {key}": value for key, value in found.items()}
    return results


def check(variant: dict[str, Any], dtype: torch.dtype) -> None:
    # In a handful of float32 numbers chance decides which side rounds better: there, the worst of several draws.
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 1000
    assert_agreement(partial(all_runs, variant), [build(variant, dtype, seed) for seed in range(5 if few else 1)])


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_float64(variant: dict[str, Any]) -> None:
    check(variant, torch.float64)


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_float32(variant: dict[str, Any]) -> None:
    check(variant, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS[::7] + VARIANTS[4::7], ids=name_of)  # every loss, every activation
def test_instruction_sets(kernels: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    assert ops.build_info()["cpu_kernels"] == kernels
    check(variant, dtype)


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEPROP_CPU_CAPABILITY", "mmx")
    problem, _ = build(VARIANTS[0], torch.float32)
    with pytest.raises(ValueError, match=r"CEPROP_CPU_CAPABILITY must be one of default.*, got mmx"):
        ops.relax(problem.circuit, problem.x, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_bitwise_the_same_for_every_number_of_threads(
    threads: Callable[[int], None], schedule: str, feedback: str, shape: tuple, dtype: torch.dtype
) -> None:
    variant = {**VARIANTS[0], "shape": shape, "feedback": feedback, "schedule": schedule}
    runs = []
    for count in (1, 1, 2, 3, 5):
        threads(count)
        problem, nudge = build(variant, dtype)
        runs.append(all_runs(variant, ops, problem.circuit, problem.x, nudge))
    for run in runs[1:]:
        for kind, tensors in runs[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, run[kind], strict=True)), kind


def assert_both_copies_stay_the_same(module: Any, schedule: str) -> None:
    """W is held twice, for the way up and the way down. With zero further learning, the next call's states tell whether
    what was written back is what the phase went on with."""
    problem, nudge = build({**VARIANTS[0], "shape": ((20, 33, 40, 7), 7), "schedule": schedule}, torch.float64)
    one_call, two_calls = copy_of(problem.circuit), copy_of(problem.circuit)
    lr = [0.1] * 3
    ran = module.cep_step(one_call, problem.x, nudge, free_steps=0, nudged_steps=2, lr=lr)
    module.cep_step(two_calls, problem.x, nudge, free_steps=0, nudged_steps=1, lr=lr)
    first = module.relax(problem.circuit, problem.x, 1, None, nudge).states
    second = module.relax(two_calls, problem.x, 1, first, nudge).states
    for a, b in zip(second, ran.nudged_states[0], strict=True):
        assert relative_error(a, b) < 1e-14


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_both_copies_of_tied_weights_stay_the_same(schedule: str) -> None:
    assert_both_copies_stay_the_same(ops, schedule)


def assert_activation_is_right(module: Any, activation: str, dtype: torch.dtype) -> None:
    """Over the whole range of drives, to some units in the last place. With zero weights a unit's next state is
    rho(bias)."""
    fine = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    tiny = torch.logspace(-30, 0, 301, dtype=torch.float64)
    far = torch.tensor([1e3, 1e30], dtype=torch.float64)
    drive = torch.cat([fine, tiny, -tiny, far, -far, torch.zeros(1, dtype=torch.float64)]).to(dtype)
    circuit = Circuit([torch.zeros(len(drive), 1, dtype=dtype)], [drive], None, Dynamics(activation, activation))
    got = module.relax(circuit, torch.zeros(1, 1, dtype=dtype), 1).states[0][0]
    exact = rho(activation, drive.double())
    epsilon = torch.finfo(dtype).eps
    # The sigmoid's argument 2 - 4x is rounded, which its slope of at most 1 passes on.
    if activation == "sigmoid":
        relative = (got.double() - exact).abs() / (exact + epsilon)
        allowed = (4 + 4 * drive.double().abs()).clamp(max=200) * epsilon
        assert bool((relative <= allowed).all())
    else:
        assert bool(((got.double() - exact).abs() <= 4 * epsilon * exact.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(kernels: str, activation: str, dtype: torch.dtype) -> None:
    assert_activation_is_right(ops, activation, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", BOUNDS)
def test_the_exponential_has_all_its_terms(kernels: str, activation: str, dtype: torch.dtype) -> None:
    assert largest_error(ops, activation, dtype) < BOUNDS[activation]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_finite_drives_stay_visible(kernels: str, activation: str, bad: float) -> None:
    bias = torch.tensor([0.3, bad, 0.3])
    circuit = Circuit([torch.zeros(3, 2)], [bias], None, Dynamics(activation, activation))
    got = ops.relax(circuit, torch.zeros(4, 2), 1).states[0]
    assert torch.equal(got.isnan(), reference.relax(circuit, torch.zeros(4, 2), 1).states[0].isnan())
    assert torch.allclose(got, rho(activation, bias).expand(4, 3), equal_nan=True)
