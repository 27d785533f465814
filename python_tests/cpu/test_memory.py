"""The memory that the kernels keep from call to call: whatever it held before, and for whom, results are the same."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from agreement import Results
from kernel_runs import all_runs
from problems import random_problem, relative_error
from variants import VARIANTS, build, name_of

from ceprop_cuda import ops
from ceprop_cuda.spec import reference

Result = TypeVar("Result")


def in_new_thread(call: Callable[[], Result]) -> Result:
    """Each thread keeps memory of its own, so a new one has none."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def assert_same(found: Results, expected: Results) -> None:
    for kind, tensors in expected.items():
        assert all(map(torch.equal, found[kind], tensors)), kind


def runs_of(variant: dict[str, Any], dtype: torch.dtype) -> Callable[[], Results]:
    problem, nudge = build(variant, dtype)
    return lambda: all_runs(variant, ops, problem.circuit, problem.x, nudge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS[::3], ids=name_of)
def test_what_memory_held_before_has_no_say(kernels: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    problem, nudge = build(variant, dtype)
    expected = in_new_thread(runs_of(variant, dtype))
    nothing = torch.full_like(problem.x, torch.nan)
    states = all_runs(variant, ops, problem.circuit, nothing, nudge)["relax states"]
    assert states[0].isnan().all()
    assert_same(runs_of(variant, dtype)(), expected)


def test_calls_of_different_sizes_in_turn() -> None:
    shapes = [((5, 3), 1), ((20, 33, 7), 7), ((12, 70, 80, 9), 3), ((20, 33, 7), 6)]
    calls = [
        runs_of({**VARIANTS[0], "shape": shape}, dtype) for shape in shapes for dtype in (torch.float32, torch.float64)
    ]
    expected = [in_new_thread(call) for call in calls]
    first = [call() for call in calls]
    for _ in range(20):
        for call, wanted in zip(calls, expected, strict=True):
            assert_same(call(), wanted)
    for found, wanted in zip(first, expected, strict=True):  # nor have later calls written to them
        assert_same(found, wanted)


def test_calls_at_the_same_time() -> None:
    calls = [runs_of({**VARIANTS[0], "shape": shape}, torch.float64) for shape in (((20, 33, 7), 7), ((20, 33, 7), 6))]
    expected = [in_new_thread(call) for call in calls]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda call: [call() for _ in range(20)], calls))
    for results, wanted in zip(found, expected, strict=True):
        for result in results:
            assert_same(result, wanted)


def test_more_memory_than_is_kept() -> None:
    """64 MB are kept: these calls take more, the second in one block."""
    for units in (2100, 3000, 2100, 3000):
        circuit, x, _ = random_problem((10, units, units), 1)
        found, wanted = (module.relax(circuit, x, 2).states for module in (ops, reference))
        for a, b in zip(found, wanted, strict=True):
            assert relative_error(a, b) < 1e-14
