"""Teams of blocks under the emulation: no race, no step beyond memory, and every wait is needed."""

from __future__ import annotations

import re
import shutil
from itertools import product

import pytest
import torch
from emulated_device import Refused
from emulated_teams import CALLS, NOT_FINITE, SOME_TEAMS, THEN_GRIDS, Device, call_every_op, calls_of, devices
from problems import random_problem
from project import ROOT
from settling import LIMIT, SIZES

from ceprop_cuda.spec import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FILES = sorted((ROOT / "csrc" / "cuda" / "teams").glob("*.cuh"))
OF_A_TEAM = "begin|end|meet|wait_for_brought|wait_for_own"
WAIT = rf"__sync(threads|warp)(_and)?\((?!.*AND_CALLER)|\bsync\(\)|team\.({OF_A_TEAM})\(\)|\bwait\(\w+, g, "
# Where kernels wait, and what stands there.
WAITS = {
    f"{file.name}:{number}": line.strip()
    for file in FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(WAIT, line.split("//")[0])
}
VOTES = [place for place in WAITS if "__syncthreads_and" in WAITS[place]]  # what these find out is not in memory
WIDE_GRID = "grid of 26"  # whose warps copy alone
Calls = dict[tuple[str, str], set[str]]


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("teams"))


@pytest.fixture(scope="session")
def met(device: Device) -> Calls:
    """The places where the calls of a team wait, that run without a report of a race."""
    found: Calls = {}
    for team in (*SOME_TEAMS, *THEN_GRIDS, WIDE_GRID):
        for number, what in enumerate((NOT_FINITE, *calls_of(team))):
            emulated = device(team, name="race", seed=10 * (number % 2))
            call_every_op(emulated, what, (torch.float32, torch.float64)[number % 2])
            found[team, what] = emulated.sites
    return found


def test_no_race_and_every_wait_is_met(met: Calls) -> None:
    assert set.union(*met.values()) == set(WAITS)


@pytest.mark.parametrize("team", (*SOME_TEAMS, WIDE_GRID))
@pytest.mark.parametrize("place", [place for place in WAITS if place not in VOTES])
def test_a_missing_wait_is_reported(device: Device, met: Calls, place: str, team: str) -> None:
    meeting = [what for what in (NOT_FINITE, *calls_of(team)) if place in met[team, what]]
    for what in meeting:
        for seed in range(3):
            try:
                call_every_op(device(team, name="race", skipped_site=place, seed=seed), what)
            except Refused as refused:
                assert re.match(r"data race on |a mailbox |map_shared_rank: |no mailbox ", str(refused))
                return
    assert not meeting, WAITS[place]


@pytest.mark.parametrize("place", VOTES)
def test_a_missing_vote_is_seen(device: Device, place: str) -> None:
    """Where one unit is still on its way, by another number of steps or by threads that part."""
    circuit, x, _ = random_problem(SIZES, 4)
    states = reference.relax(circuit, x, LIMIT).states
    states[-1][-1, -1] += 1
    call = (circuit, x, LIMIT, states, None, 1e-6)
    steps = reference.relax(*call).steps
    assert torch.equal(device("grid of 3").relax(*call).steps, steps)
    try:
        assert not torch.equal(device("grid of 3", skipped_site=place).relax(*call).steps, steps)
    except Refused as refused:
        assert re.match("barrier divergence: |deadlock: ", str(refused))


@pytest.mark.parametrize(
    ("team", "what"),
    [(team, what) for team, what in product((*SOME_TEAMS, "cluster of 16"), CALLS) if what in calls_of(team)],
)
def test_no_step_beyond_memory(device: Device, what: str, team: str) -> None:
    dtype = (torch.float32, torch.float64)[list(CALLS).index(what) % 2]
    call_every_op(device(team, name="asan"), what, dtype)
