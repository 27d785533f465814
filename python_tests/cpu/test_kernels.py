"""The fused kernels against the float64 reference: every variant, instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from kernel_runs import all_runs
from last_places import BOUNDS, assert_activation_is_right, largest_error
from tied_copies import assert_both_copies_stay_the_same
from variants import SHAPES, VARIANTS, build, name_of

from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Dynamics, rho


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


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_both_copies_of_tied_weights_stay_the_same(schedule: str) -> None:
    assert_both_copies_stay_the_same(ops, schedule)


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
    circuit = Circuit([torch.zeros(3, 2)], [bias], None, Dynamics(activation, activation), chain(1))
    got = ops.relax(circuit, torch.zeros(4, 2), 1).states[0]
    assert torch.equal(got.isnan(), reference.relax(circuit, torch.zeros(4, 2), 1).states[0].isnan())
    assert torch.allclose(got, rho(activation, bias).expand(4, 3), equal_nan=True)
