"""The CUDA kernel of chains with convolutions without a GPU: its unchanged source under cuda_emulation, against the
reference and its checks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from convolution_variants import build_ties, name_of_chain
from emulated_chains import CALLS, CHAINS, SOURCE, VARIANTS, build, call_every_op
from emulated_device import EmulatedDevice, Refused, compiled_kernels
from golden_steps import GOLDEN_CHAINS, assert_chain_is_golden
from kernel_runs import all_runs, rates
from not_finite_numbers import assert_ops_store_nothing
from problems import relative_error
from project import ROOT
from variants import TOLERANCES, copy_of

from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

CUDA = ROOT / "csrc" / "cuda"
KERNEL_FILES = sorted([*(CUDA / "conv").glob("*.cuh"), CUDA / "settling.cuh"])

BLOCKS = (1, 3, 10)

Device = Callable[..., EmulatedDevice]


@pytest.fixture(scope="session")
def convolution_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda_convolutions")


@pytest.fixture(scope="session")
def device(convolution_folder: Path) -> Device:
    """Makes a device that runs one of the builds with at most so many blocks."""

    def make(blocks: int = 3, name: str = "plain", **settings: Any) -> EmulatedDevice:
        return EmulatedDevice(compiled_kernels(name, SOURCE), convolution_folder, multiprocessors=blocks, **settings)

    return make


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """For the reference, whose tensors are small."""
    threads(1)


# --- The same as the reference


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda i: name_of_chain(VARIANTS[i]))
def test_agreement(device: Device, number: int) -> None:
    variant, blocks = VARIANTS[number], BLOCKS[number % len(BLOCKS)]
    dtype = (torch.float64, torch.float32)[number.bit_count() % 2]  # in step with no column of the variants
    # Whether rounding moves a maximum to another place, or a unit over a kink, is chance: in float32, of several draws.
    draws = [build(variant, dtype, seed) for seed in range(3 if dtype == torch.float32 else 1)]
    assert_agreement(partial(all_runs, variant), draws, median, device(blocks))


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_every_chain(device: Device, number: int, feedback: str) -> None:
    variant = {**VARIANTS[0], "chain": number, "feedback": feedback}
    assert_agreement(partial(all_runs, variant), [build(variant, torch.float64)], module=device(2))


def test_ties_and_saturated_units(device: Device) -> None:
    """Equal inputs make equal maxima, of which the first counts."""
    assert_agreement(partial(all_runs, VARIANTS[0]), [build_ties(VARIANTS[0], CHAINS)], module=device())


@pytest.mark.parametrize("name", GOLDEN_CHAINS)
def test_golden_cases(device: Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = device(16)
    monkeypatch.setattr(ops, "ep_step", lambda *args, precision, engine, **phases: emulated.ep_step(*args, **phases))
    assert_chain_is_golden(name, "fused")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_little_shared_memory(device: Device, dtype: torch.dtype) -> None:
    """A product's depth comes in smaller parts."""
    variant = {**VARIANTS[0], "chain": 3}
    problem, nudge = build(variant, dtype)
    tight = device(shared_bytes=18 << 10)
    assert_agreement(partial(all_runs, variant), [(problem, nudge)], module=tight)
    states = [d.relax(problem.circuit, problem.x, 7).states for d in (device(), tight)]
    assert not all(map(torch.equal, *states))  # added up in another order


def test_a_convolution_goes_on_from_given_states(device: Device) -> None:
    problem, nudge = build(VARIANTS[0], torch.float64)
    circuit, x, _ = problem
    emulated = device()
    first = emulated.relax(circuit, x, 3, None, nudge).states
    again = emulated.relax(circuit, x, 2, first, nudge).states
    assert all(map(torch.equal, again, emulated.relax(circuit, x, 5, None, nudge).states))


# --- Phases that end early


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_phases_end_where_those_of_the_reference_do(device: Device, schedule: str, feedback: str) -> None:
    problem, nudge = build({**VARIANTS[0], "feedback": feedback, "schedule": schedule}, torch.float64)
    circuit, x, _ = problem
    phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "symmetric": True}
    for tolerance in (1e-2, 1e-5):
        found = []
        for module in (device(), reference):
            ep = module.ep_step(circuit, x, nudge, **phases, tolerance=tolerance)
            cep = module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit), tolerance=tolerance)
            found.append(([ep.steps, cep.steps], [*ep.gradients.parameters(), *cep.circuit.parameters()]))
        (steps, tensors), (wanted_steps, wanted) = found
        assert all(map(torch.equal, steps, wanted_steps))
        assert all(4 <= s < 60 for s in steps[0].tolist())
        assert max(map(relative_error, tensors, wanted)) < 1e-9


def test_states_that_are_not_finite_never_settle(device: Device) -> None:
    problem, _ = build({**VARIANTS[0], "activation": "linear"}, torch.float64)
    circuit, x, _ = problem
    assert device().relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    x[-1, -1, 2, 2] = float("nan")
    assert device().relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_not_finite_inputs_stay_visible(device: Device, pool: str, bad: float) -> None:
    problem, _ = build({**VARIANTS[0], "chain": 2, "activation": "tanh"}, torch.float32)
    circuit, x, _ = problem
    made = tuple(replace(c, pool=pool) for c in circuit.structure.convolutions)
    shapes = reference.relax(replace(circuit, structure=chain(1, made), weights=circuit.weights[:1]), x, 0).states
    weights = [circuit.weights[0], torch.rand(3, shapes[0][0].numel()) / 100]
    circuit = replace(circuit, weights=weights, structure=chain(len(weights), made))
    x[1, 0, 2, 3] = bad
    got, wanted = (module.relax(circuit, x, 3).states for module in (device(), reference))
    for a, b in zip(got, wanted, strict=True):
        assert bool(a[0].isfinite().all())
        assert torch.equal(a[1].isnan().any(), b[1].isnan().any())


# --- The same bits


@pytest.mark.parametrize("what", CALLS)
def test_every_order_of_the_threads_gives_the_same_bits(device: Device, what: str) -> None:
    emulated = device()  # under another seed at each call
    first, *others = (call_every_op(emulated, torch.float32, what) for _ in range(3))
    for other in others:
        assert all(map(torch.equal, first, other))


# --- Memory and barriers


@pytest.fixture(scope="session")
def barriers_of(device: Device) -> Callable[[str], set[str]]:
    """The barriers that calls meet, when they run without a report of a race."""

    def run(what: str) -> set[str]:
        met: set[str] = set()
        for blocks, dtype in ((3, torch.float32), (2, torch.float64)):
            emulated = device(blocks, name="race", seed=blocks)
            call_every_op(emulated, dtype, what)
            met |= emulated.sites
        return met

    return cache(run)


@pytest.mark.parametrize("what", CALLS)
def test_no_race(barriers_of: Callable[[str], set[str]], what: str) -> None:
    assert barriers_of(what)


@pytest.mark.parametrize("what", CALLS)
def test_no_step_beyond_memory(device: Device, what: str) -> None:
    call_every_op(device(name="asan"), (torch.float32, torch.float64)[list(CALLS).index(what) % 2], what)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_no_step_beyond_memory_in_other_shapes(device: Device, number: int, dtype: torch.dtype) -> None:
    problem, nudge = build({**VARIANTS[0], "chain": number}, dtype)
    emulated = device(name="asan", shared_bytes=18 << 10)
    emulated.ep_step(problem.circuit, problem.x, nudge, free_steps=1, nudged_steps=1)
    emulated.cep_step(problem.circuit, problem.x, nudge, free_steps=1, nudged_steps=2, lr=rates(problem.circuit))


# --- Every barrier is needed, and found missing

BARRIERS = {
    f"{file.name}:{number}": line
    for file in KERNEL_FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(r"\bsync\(\)|__sync(threads|warp)", line.split("//")[0])
}
VOTES = [place for place in BARRIERS if "__syncthreads_" in BARRIERS[place]]  # what these find out is not in memory


def test_every_barrier_is_met(barriers_of: Callable[[str], set[str]]) -> None:
    assert set.union(*map(barriers_of, CALLS)) == set(BARRIERS)


@pytest.mark.parametrize("place", [place for place in BARRIERS if place not in VOTES])
def test_a_missing_barrier_is_reported(device: Device, barriers_of: Callable[[str], set[str]], place: str) -> None:
    """By some call of those that meet it."""
    for what in CALLS:
        if place not in barriers_of(what):
            continue
        try:
            call_every_op(device(name="race", skipped_site=place), torch.float32, what)
        except Refused as refused:
            assert re.match(r"data race on ", str(refused))
            return
    pytest.fail(BARRIERS[place])


@pytest.mark.parametrize("place", VOTES)
def test_a_missing_vote_is_seen(device: Device, place: str) -> None:
    """Where one unit is still on its way, by another number of steps or by threads that part."""
    problem, _ = build({**VARIANTS[0], "dynamics": "energy"}, torch.float64)
    alone = [w * (layer == 0) for layer, w in enumerate(problem.circuit.weights)]
    circuit, x = replace(problem.circuit, weights=alone), problem.x
    states = reference.relax(circuit, x, 60).states
    states[-1][-1, -1] += 1
    call = (circuit, x, 60, states, None, 1e-6)
    steps = reference.relax(*call).steps
    assert torch.equal(device().relax(*call).steps, steps)
    try:
        assert not torch.equal(device(skipped_site=place).relax(*call).steps, steps)
    except Refused as refused:
        assert re.match("barrier divergence: |deadlock: ", str(refused))


def test_a_step_that_is_not_finite_stores_nothing(device: Device) -> None:
    assert_ops_store_nothing(device(), "convolutions")
