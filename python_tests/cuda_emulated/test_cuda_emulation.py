"""The CUDA emulation finds what it is there to find: kernels with a fault are reported, right ones are not."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_emulation.builds import BUILDS, HERE, build, compiled, runtime
from kept_programs import program_of, run
from project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SEEDS = 10
KERNELS = HERE / "example_kernels.cuh"
INCLUDES = f"-I{ROOT / 'csrc' / 'cuda'}"

RIGHT = [
    "relaxation",
    "clusters of 4",
    "clusters of 16",
    "mail",
    "pipeline",
    "last block",
    "atomic count",
    "vectors",
    "same seed, same order",
    "no shift",
    "no divergence",
    "ignored race",
]


# What a skipped barrier leads to. Those of mailboxes are asked for before their memory is.
UNORDERED = ["data race on ", "no mailbox is open there", "a mailbox is told what its next use expects before "]


@dataclass
class Outcome:
    """Of one case: seeds whose result was wrong, seeds with a report instead of a result, and the first report."""

    wrong: int
    reports: int
    report: str


Outcomes = dict[str, dict[str, Outcome]]  # by case and skipped barrier, "-": none


def outcomes_of(program: Path) -> Outcomes:
    done = run(program, SEEDS)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    outcomes: Outcomes = defaultdict(dict)
    for line in done.stdout.splitlines():
        case, skipped, wrong, reports, report = line.split("\t")
        outcomes[case][skipped] = Outcome(int(wrong), int(reports), report)
    return outcomes


SOURCE = HERE / "example_test.cpp"


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    return {name: build(name, SOURCE, INCLUDES) for name in BUILDS}


@pytest.fixture(scope="module")
def found(programs: dict[str, Path]) -> dict[str, Outcomes]:
    return {name: outcomes_of(program) for name, program in programs.items()}


@pytest.mark.parametrize("name", BUILDS)
def test_right_kernels_are_right(found: dict[str, Outcomes], name: str) -> None:
    assert {case: found[name][case]["-"] for case in RIGHT} == dict.fromkeys(RIGHT, Outcome(0, 0, "-"))


@pytest.mark.parametrize(
    ("case", "is_seen_by_value"),
    [
        ("no block barrier", True),
        ("no grid barrier", True),
        ("block barrier for grid barrier", True),
        ("one buffer, few steps", True),
        ("one buffer, many steps", False),  # converges to the same states
        ("no wait for mail", True),
        ("no wait for a copy", True),
        ("no wait at the end of a cluster", True),
        ("no fences", False),
        ("count without atomics", False),
    ],
)
def test_races_are_reported(found: dict[str, Outcomes], case: str, is_seen_by_value: bool) -> None:
    race = found["race"][case]["-"]
    assert race.reports == SEEDS
    assert race.report.startswith("data race on ")
    assert race.report.count(" at example_kernels.cuh:") + race.report.count(": end of block (") == 2
    for name in ("plain", "asan"):
        seen = found[name][case]["-"]
        assert (seen.wrong + seen.reports > 0) == is_seen_by_value


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("some exit", "barrier divergence: "),
        ("two barriers", "barrier divergence: "),
        ("block and grid barrier", "deadlock: "),
        ("missing lane", "warp divergence: "),
        ("polling", "livelock: "),
        ("a byte missing", "deadlock: "),
        ("late for mail", "a mailbox is a use ahead of who waits for it at example_kernels.cuh:"),
    ],
)
def test_threads_that_wait_for_nothing_are_reported(
    found: dict[str, Outcomes], name: str, case: str, report: str
) -> None:
    outcome = found[name][case]["-"]
    assert outcome.reports == SEEDS
    assert outcome.report.startswith(report)


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("133 cooperative blocks", "too large to be cooperative"),
        ("clusters of 17", "clusters of 1 to 16 blocks"),
        ("1025 threads", "1 to 1024 threads"),
        ("228 KiB", "too much shared memory"),
    ],
)
def test_launches_that_no_device_takes_are_refused(found: dict[str, Outcomes], case: str, report: str) -> None:
    assert report in found["plain"][case]["-"].report


def test_each_barrier_is_known_by_its_line(found: dict[str, Outcomes]) -> None:
    lines = KERNELS.read_text().splitlines()
    calls = {case: [site for site in found["race"][case] if site != "-"] for case in RIGHT}
    for case, sites in calls.items():
        for site in sites:
            file, line = site.split(":")
            assert file == KERNELS.name
            assert re.search("sync|wait_for_(grid|mailbox)", lines[int(line) - 1]), f"{case}, {site}"
    barriers = {
        "relaxation": 2,
        "clusters of 4": 2,
        "mail": 3,
        "pipeline": 2,
    }
    assert {case: len(calls[case]) for case in barriers} == barriers
    assert not calls["atomic count"]


def test_every_barrier_that_is_skipped_is_reported(found: dict[str, Outcomes]) -> None:
    lines = KERNELS.read_text().splitlines()
    for case in RIGHT:
        for site, outcome in found["race"][case].items():
            if site == "-":
                continue
            what = f"{case}, {site}: {outcome}"
            if "__syncthreads_" in lines[int(site.split(":")[1]) - 1]:  # what these find out is not in memory
                assert (outcome.wrong, outcome.reports) == (SEEDS, 0), what
            else:
                assert (outcome.wrong, outcome.reports) == (0, SEEDS), what
                assert outcome.report.startswith(tuple(UNORDERED)), what
    for name in ("plain", "asan"):
        for site, outcome in found[name]["relaxation"].items():
            assert (outcome.wrong > 0) == (site != "-")


def test_writes_out_of_bounds_are_reported(found: dict[str, Outcomes], programs: dict[str, Path]) -> None:
    assert found["plain"]["shift"]["-"].reports == SEEDS
    assert "write outside shared memory" in found["plain"]["shift"]["-"].report
    for where, report in enumerate(["cuda_emulation: shared memory of block ", "heap-buffer-overflow"]):
        done = run(programs["asan"], "shift", where)
        assert done.returncode != 0
        assert report in done.stderr
        assert "ERROR: AddressSanitizer" in done.stderr
        assert "cuda_emulation: memory error in block (" in done.stderr
    done = run(programs["asan"], "shift", 2)
    assert done.returncode != 0
    assert "runtime error: store to misaligned address" in done.stderr


def test_stacks_without_assembly() -> None:
    portable = runtime("-DCUDA_EMULATION_UCONTEXT")
    outcomes = outcomes_of(program_of("portable", compiled("plain", SOURCE, INCLUDES), portable))
    assert {case: outcomes[case]["-"] for case in RIGHT} == dict.fromkeys(RIGHT, Outcome(0, 0, "-"))


def test_the_runtime_refuses_to_be_checked_itself() -> None:
    done = run("g++", "-std=c++20", "-fsanitize=thread", "-fsyntax-only", HERE / "runtime.cpp")
    assert "must be compiled without -fsanitize=thread" in done.stderr
