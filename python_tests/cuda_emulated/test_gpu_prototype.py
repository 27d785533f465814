"""The kernel of benchmarks/gpu/prototype without a GPU: right, free of races, and each of its waits is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_emulation.builds import build
from kept_programs import run
from project import EMULATED_PROGRAMS, ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PROTOTYPE = ROOT / "benchmarks" / "gpu" / "prototype"
SOURCE = EMULATED_PROGRAMS / "run_prototype.cpp"
KERNEL = "relax_cluster.cuh"

ROUNDING = 2e-6  # a state's error that five steps in float32 may leave
SEEDS = {"plain": 5, "race": 3}
REPORTS = ("data race on ", "a mailbox ")


def built(name: str, prototype: Path = PROTOTYPE, copy: Path | None = None) -> Path:
    includes = [f"-I{path}" for path in (ROOT / "csrc" / "cuda", ROOT / "csrc", prototype)]
    return build(name, SOURCE, *includes, copy=copy)


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    return {name: built(name) for name in SEEDS}


def lines_of(program: Path, *arguments: object) -> list[str]:
    done = run(program, *arguments)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


def first_report(program: Path, seed: int, *arguments: object) -> str:
    """What the emulation says of small networks; "" if nothing."""
    last = lines_of(program, seed, "small", *arguments)[-1]
    return last if last.startswith(REPORTS) else ""


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("name", SEEDS)
def test_states_are_those_of_loops_in_double(name: str, size: str, programs: dict[str, Path]) -> None:
    for seed in range(SEEDS[name] - (size == "full")):
        lines = lines_of(programs[name], seed, size)
        assert len(lines) == {"small": 4, "full": 2}[size]
        assert all(float(line.split("\t")[0]) < ROUNDING for line in lines), lines


def test_every_wait_is_needed(programs: dict[str, Path]) -> None:
    text = (PROTOTYPE / KERNEL).read_text().splitlines()
    sites = [line for line in lines_of(programs["race"], "sites") if line.startswith(KERNEL)]
    calls = {site: text[int(site.split(":")[1]) - 1].strip() for site in sites}
    needed = {site for site, call in calls.items() if "go on together" not in call}  # one barrier orders nothing
    assert len(sites) == 5 and len(needed) == 4, calls
    for site in needed:
        for seed in range(SEEDS["race"]):
            assert first_report(programs["race"], seed, site), f"{site}, {calls[site]}, seed {seed}"


def test_one_buffer_would_not_do(tmp_path: Path) -> None:
    faulty = tmp_path / "one_buffer"
    shutil.copytree(PROTOTYPE, faulty)
    text = (faulty / KERNEL).read_text()
    two = "next = (2 * g + 1 - now) * places.row"
    assert text.count(two) == 1
    (faulty / KERNEL).write_text(text.replace(two, "next = (2 * g + now) * places.row"))
    program = built("race", faulty, copy=faulty)
    for seed in range(SEEDS["race"]):
        assert first_report(program, seed).startswith("data race on shared memory")
