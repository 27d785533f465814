"""Clusters that take chains with maps through whole phases, without a GPU: the unchanged source under cuda_emulation,
between PyTorch's operators for the CPU, against the reference."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from convolution_variants import Chain, build_chain, build_ties, name_of_chain, same
from emulated_device import Refused
from emulated_maps import BLOCKS, CALLS, CHAINS, SMALL, VARIANTS, Device, build, call_every_op, devices
from kernel_runs import all_runs, rates
from not_finite_numbers import assert_ops_store_nothing
from problems import relative_error
from project import ROOT
from variants import TOLERANCES, copy_of

from ceprop_cuda.spec import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FILES = sorted((ROOT / "csrc" / "cuda" / "maps").glob("*.cuh"))
# Where the kernel waits, and what stands there.
WAITS = {
    f"{file.name}:{number}": line.strip()
    for file in FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(r"__syncthreads\(|\bsync\(\)|memory_\.wait\(", line.split("//")[0])
}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("maps"))


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """For the reference, whose tensors are small."""
    threads(1)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda i: name_of_chain(VARIANTS[i]))
def test_agreement(device: Device, number: int) -> None:
    variant = VARIANTS[number]
    problem = build(variant, torch.float64)
    assert_agreement(partial(all_runs, variant), [problem], module=device(BLOCKS[number % len(BLOCKS)]))


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda i: name_of_chain(VARIANTS[i]))
def test_agreement_in_float32(device: Device, number: int) -> None:
    variant = VARIANTS[number]
    # Whether rounding moves a maximum to another place, or a unit over a kink, is chance: of several draws.
    draws = [build(variant, torch.float32, seed) for seed in range(3)]
    assert_agreement(partial(all_runs, variant), draws, median, device(BLOCKS[(number + 1) % len(BLOCKS)]))


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_every_chain(device: Device, chain: int, schedule: str) -> None:
    blocks = BLOCKS[(chain + 2 * (schedule == "synchronous")) % len(BLOCKS)]
    problem, nudge = build({**SMALL, "chain": chain, "schedule": schedule}, torch.float64)
    settings: dict[str, Any] = {"free_steps": 6, "nudged_steps": 3, "symmetric": True}
    for step in ("ep_step", "cep_step"):
        learning = {"lr": rates(problem.circuit)} if step == "cep_step" else {}
        found, wanted = (
            getattr(module, step)(copy_of(problem.circuit), problem.x, nudge, **settings, **learning)
            for module in (device(blocks), reference)
        )
        of = [r.gradients if step == "ep_step" else r.circuit for r in (found, wanted)]
        for a, b in zip(of[0].parameters(), of[1].parameters(), strict=True):
            assert relative_error(a, b) < 1e-9


def test_ties_and_saturated_units(device: Device) -> None:
    """Equal inputs make equal maxima, of which the first counts."""
    assert_agreement(partial(all_runs, SMALL), [build_ties(SMALL, CHAINS)], module=device())


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_phases_end_where_those_of_the_reference_do(device: Device, schedule: str) -> None:
    (circuit, x, _), nudge = build({**SMALL, "schedule": schedule}, torch.float64)
    for tolerance, limit in ((1e-2, 60), (1e-3, 60), (1e-3, 7)):  # the last is reached before
        phases: dict[str, Any] = {"free_steps": limit, "nudged_steps": limit, "symmetric": True, "tolerance": tolerance}
        found, wanted = (module.ep_step(circuit, x, nudge, **phases) for module in (device(), reference))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
            assert relative_error(a, b) < 1e-9


def test_relaxation_goes_on_from_given_states(device: Device) -> None:
    (circuit, x, _), nudge = build(SMALL, torch.float64)
    first = device().relax(circuit, x, 3, None, nudge).states
    again = device().relax(circuit, x, 2, first, nudge).states
    assert all(map(torch.equal, again, device().relax(circuit, x, 5, None, nudge).states))


@pytest.mark.parametrize("what", CALLS)
def test_every_order_of_the_threads_gives_the_same_bits(device: Device, what: str) -> None:
    """A call has another seed than the one before."""
    first, second = (call_every_op(device(), what) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_step_that_is_not_finite_stores_nothing(device: Device) -> None:
    assert_ops_store_nothing(device(), "convolutions")


# --- Waits


@pytest.fixture(scope="module")
def met(device: Device) -> dict[str, set[str]]:
    """The places where calls wait, that run without a report of a race."""
    found = {}
    for number, what in enumerate(CALLS):
        emulated = device(2 + number % 2, name="race", seed=number)
        call_every_op(emulated, what)
        found[what] = emulated.sites
    return found


def test_no_race_and_every_wait_is_met(met: dict[str, set[str]]) -> None:
    assert set.union(*met.values()) == set(WAITS)


@pytest.mark.parametrize("place", WAITS)
def test_a_missing_wait_is_reported(device: Device, met: dict[str, set[str]], place: str) -> None:
    for what in (what for what in CALLS if place in met[what]):
        for seed in range(3):
            try:
                call_every_op(device(3, name="race", skipped_site=place, seed=seed), what)
            except Refused as refused:
                assert re.match(r"data race on |a mailbox |map_shared_rank: |no mailbox ", str(refused))
                return
    raise AssertionError(WAITS[place])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_no_step_beyond_memory(device: Device, chain: int, dtype: torch.dtype) -> None:
    for blocks in (1, 3):
        problem, nudge = build({**SMALL, "chain": chain, "schedule": ("synchronous", "asynchronous")[chain % 2]}, dtype)
        device(blocks, "asan").ep_step(problem.circuit, problem.x, nudge, free_steps=2, nudged_steps=1, symmetric=True)


# --- What clusters do not take


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feedback": "free"}, "tied weights"),
        ({"loss": "cross_entropy", "at": "drive", "readout": True}, "no readout"),
        ({**SMALL, "dynamics": "energy", "loss": "cross_entropy", "output_activation": "linear"}, "energy dynamics"),
    ],
)
def test_networks_that_clusters_refuse(device: Device, settings: dict[str, Any], message: str) -> None:
    problem, nudge = build({**SMALL, **settings}, torch.float32)
    with pytest.raises(Refused, match=message):
        device().relax(problem.circuit, problem.x, 3, None, nudge)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 5), (7, 7)])
def test_kernels_that_clusters_refuse(device: Device, kernel: tuple[int, int]) -> None:
    chain = Chain((1, 12, 12), 1, (2, 2), ((3, 3), kernel), (same(), same(2)), (2,))
    problem, _ = build_chain(SMALL, torch.float32, 0, [chain])
    with pytest.raises(Refused, match="3 x 3 or 5 x 5"):
        device().relax(problem.circuit, problem.x, 3)
