"""Clusters that take chains with maps through the phases in which weights rest, on a GPU that has clusters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from convolution_variants import name_of_chain
from emulated_maps import CALLS, CHAINS, SMALL, VARIANTS, build, call_every_op
from golden_steps import GOLDEN_CHAINS, assert_chain_is_golden
from kernel_runs import all_runs, run_relax
from not_finite_numbers import assert_ops_store_nothing
from on_gpu import GPU, OnGpu, forced, no_waiting, there
from problems import relative_error
from variants import TOLERANCES

from ceprop_cuda import ops
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.spec import reference

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def by_clusters() -> Iterator[None]:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters of blocks")
    with forced("teams"):
        yield


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of_chain)
def test_agreement(variant: dict[str, Any], dtype: torch.dtype) -> None:
    # As in test_convolution_kernels.check.
    draws = [build(variant, dtype, seed) for seed in range(5 if dtype == torch.float32 else 1)]
    assert_agreement(partial(all_runs, variant), draws, median, OnGpu())


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_every_chain(chain: int, schedule: str) -> None:
    variant = {**SMALL, "chain": chain, "schedule": schedule}
    assert_agreement(partial(all_runs, variant), [build(variant, torch.float64)], module=OnGpu())


@pytest.mark.parametrize("name", GOLDEN_CHAINS)
def test_golden_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's operators where clusters do not take them."""
    real = ops.ep_step
    monkeypatch.setattr(ops, "ep_step", lambda *args, **settings: there(real(*there(args), **settings), "cpu"))
    with forced("auto"):
        assert_chain_is_golden(name, "fused")


@pytest.mark.parametrize("batch", [1, 20, 64, 150])
def test_networks_of_the_papers(batch: int) -> None:
    """More samples than clusters run at once are among them."""
    net = PRESETS["p-conv"].network((1, 28, 28), 10).to(GPU)
    x = torch.rand(batch, 1, 28, 28, device=GPU)
    assert ops.launch_plan(net.circuit(), x)["engine"] == "teams"
    found = net.relax(x, 12, backend="fused")
    wanted = net.double().relax(x.double(), 12, backend="reference")
    for state, true in zip(found, wanted, strict=True):
        assert relative_error(state.double(), true) < 1e-5


@pytest.mark.parametrize("what", CALLS)
def test_the_same_bits_in_every_call(what: str) -> None:
    """The first call is no graph, the second captures one, the third replays it."""
    first, *others = (call_every_op(OnGpu(), what) for _ in range(3))
    for other in others:
        assert all(map(torch.equal, first, other))


def test_phases_end_where_those_of_the_reference_do() -> None:
    (circuit, x, _), nudge = build(SMALL, torch.float64)
    phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "symmetric": True, "tolerance": 1e-3}
    found, wanted = (module.ep_step(circuit, x, nudge, **phases) for module in (OnGpu(), reference))
    assert torch.equal(found.steps, wanted.steps)
    for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
        assert relative_error(a, b) < 1e-9


def test_without_waiting() -> None:
    problem, nudge = there(build(SMALL, torch.float32))
    with no_waiting():
        for _ in range(3):
            run_relax(ops, problem.circuit, problem.x, nudge)


def test_a_step_that_is_not_finite_stores_nothing() -> None:
    assert_ops_store_nothing(OnGpu(), "convolutions")
