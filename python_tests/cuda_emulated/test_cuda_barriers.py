"""The CUDA kernels of dense layers under the emulation: no race, no step beyond memory, every barrier needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
from emulated_device import PRECISIONS, Refused
from emulated_kernels import (
    CALLS,
    KERNELS,
    KERNELS_AND_CALLS,
    READOUT,
    SMALL,
    Device,
    call_every_op,
    devices,
    least_memory,
)
from problems import random_problem
from project import ROOT
from settling import LIMIT, SIZES
from variants import build

from ceprop_cuda.spec import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

KERNEL_FILES = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("cuda_kernels"))


@pytest.fixture(scope="session")
def barriers_of(device: Device) -> Callable[[str, str], set[str]]:
    """The barriers that a kernel's calls meet, when they run without a report of a race."""

    def run(kernel: str, what: str) -> set[str]:
        met: set[str] = set()
        for seed, dtype in ((0, torch.float32), (10, torch.float64)):
            emulated = device(kernel, name="race", seed=seed)
            call_every_op(emulated, dtype, *CALLS[what])
            met |= emulated.sites
        return met

    return cache(run)


@pytest.mark.parametrize(("kernel", "what"), KERNELS_AND_CALLS)
def test_no_race(barriers_of: Callable[[str, str], set[str]], kernel: str, what: str) -> None:
    assert barriers_of(kernel, what)


@pytest.mark.parametrize(("kernel", "precision"), [*product(KERNELS[::2], PRECISIONS[1:])])
def test_no_race_with_rounded_operands(device: Device, kernel: str, precision: str) -> None:
    call_every_op(device(kernel, name="race", precision=precision), torch.float32, *CALLS["readout"])


@pytest.mark.parametrize(("kernel", "what"), [*product(KERNELS[::2], CALLS), *product(KERNELS[1::2], ["tied"])])
def test_no_step_beyond_memory(device: Device, kernel: str, what: str) -> None:
    dtype = (torch.float32, torch.float64)[(KERNELS.index(kernel) // 2 + list(CALLS).index(what)) % 2]
    call_every_op(device(kernel, name="asan"), dtype, *CALLS[what])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("resident-low_rank", ((3, 1, 9, 33), 40)),  # whose matrices [40][40] no slack of the workspace holds
        ("streamed-literal", ((31, 100, 1, 33), 7)),
        ("cluster-literal", ((5, 3), 1)),
    ],
)
def test_no_step_beyond_memory_in_other_shapes(device: Device, kernel: str, shape: tuple, precision: str) -> None:
    call_every_op(device(kernel, name="asan", precision=precision), torch.float32, {"shape": shape}, {})


@pytest.mark.parametrize("kernel", KERNELS[::2])
@pytest.mark.parametrize("batch", [5, 32, 64])
def test_no_step_beyond_little_shared_memory(device: Device, batch: int, kernel: str) -> None:
    """Different uses of the room to work in are the largest."""
    network = {**READOUT, "shape": ((9, 20, 7, 5), batch)}
    problem, _ = build({**SMALL, **network}, torch.float32)
    tight = device(kernel, name="asan", shared_bytes=least_memory(device, kernel, problem))
    call_every_op(tight, torch.float32, network, {})


# --- Every barrier is needed, and found missing

# Where kernels wait, and what stands there.
BARRIERS = {
    f"{file.name}:{number}": line
    for file in KERNEL_FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(r"\bsync\(\)|__sync(threads|warp)", line.split("//")[0])
}
VOTES = [place for place in BARRIERS if "__syncthreads_" in BARRIERS[place]]  # what these find out is not in memory


def test_every_barrier_is_met(barriers_of: Callable[[str, str], set[str]]) -> None:
    assert set.union(*(barriers_of(*chosen) for chosen in KERNELS_AND_CALLS)) == set(BARRIERS)


@pytest.mark.parametrize("exchange", ["grid", "cluster"])
@pytest.mark.parametrize("place", [place for place in BARRIERS if place not in VOTES])
def test_a_missing_barrier_is_reported(
    device: Device, barriers_of: Callable[[str, str], set[str]], place: str, exchange: str
) -> None:
    """By some call of those that meet it with states in global memory, and by some with states in a cluster's."""
    calls = [chosen for chosen in KERNELS_AND_CALLS if chosen[0].startswith("cluster") == (exchange == "cluster")]
    calls.sort(key=lambda chosen: chosen[0].endswith("literal"))  # most barriers are needed in low rank
    meeting = [chosen for chosen in calls if place in barriers_of(*chosen)]
    for kernel, what in meeting:
        try:
            call_every_op(device(kernel, name="race", skipped_site=place), torch.float32, *CALLS[what])
        except Refused as refused:
            assert re.match(r"data race on |map_shared_rank: block \(.* has (already )?exited", str(refused))
            return
    assert not meeting, BARRIERS[place]


@pytest.mark.parametrize("kernel", KERNELS[::2])
@pytest.mark.parametrize("place", VOTES)
def test_a_missing_vote_is_seen(device: Device, place: str, kernel: str) -> None:
    """Where one unit is still on its way, by another number of steps or by threads that part."""
    circuit, x, _ = random_problem(SIZES, 4)
    states = reference.relax(circuit, x, LIMIT).states
    states[-1][-1, -1] += 1
    call = (circuit, x, LIMIT, states, None, 1e-6)
    steps = reference.relax(*call).steps
    assert torch.equal(device(kernel).relax(*call).steps, steps)
    try:
        assert not torch.equal(device(kernel, skipped_site=place).relax(*call).steps, steps)
    except Refused as refused:
        assert re.match("barrier divergence: |deadlock: ", str(refused))
