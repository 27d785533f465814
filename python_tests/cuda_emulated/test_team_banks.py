"""Lanes of a warp that are served at once do not wait for each other's banks of shared memory in the kernels of teams.

Counted without a GPU, on what the kernels' unchanged source reads and writes under cuda_emulation. What counts as one
instruction is said in cuda_emulation/runtime/bank_conflicts.cpp. Memory of the other blocks of a cluster counts as if
it had the same banks. In float64 lanes do wait: the four numbers that one takes at once are two loads.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import emulated_maps
import pytest
from cuda_emulation.builds import build
from emulated_device import EmulatedDevice
from emulated_library import library_program
from emulated_teams import SOME_TEAMS, SOURCE, TEAMS, call_every_op
from kept_programs import run
from project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

Turns = dict[str, int]  # most of any access, by line of the kernels' source: "teams/file.cuh:123"


def places_of(program: Path, addresses: list[str]) -> list[str]:
    """Of instructions: the line of the kernels that is at work there, whatever moves numbers for it; "": none is."""
    done = run("addr2line", "-a", "-i", "-e", program, *(f"0x{address}" for address in addresses))
    assert done.returncode == 0, done.stderr
    places = []
    for frames in re.split(r"^0x\w+\n", done.stdout, flags=re.MULTILINE)[1:]:
        lines = re.findall(r"/csrc/cuda/((?:teams|maps)/\w+\.cuh:\d+)", frames)
        places.append(next((line for line in lines if not line.startswith("teams/team.cuh")), ""))
    assert len(places) == len(addresses)
    return places


def turns_of(program: Path, folder: Path, teams: tuple[str, ...]) -> Turns:
    of_addresses: Turns = {}
    for team in teams:
        for what in ("tied", "free feedback", "asynchronous energy"):
            for seed in range(3):  # groups of as many samples
                device = EmulatedDevice(program, folder, shared_bytes=4 << 20, seed=seed, counts_turns=True,
                                        turns=of_addresses, **TEAMS[team])  # fmt: skip
                call_every_op(device, what)
    return by_place(program, of_addresses)


def by_place(program: Path, of_addresses: dict[str, int]) -> Turns:
    found: Turns = {}
    for place, turns in zip(places_of(program, list(of_addresses)), of_addresses.values(), strict=True):
        found[place] = max(found.get(place, 0), turns)
    found.pop("", None)
    return found


def text_of(place: str, csrc: Path = ROOT / "csrc") -> str:
    file, line = place.split(":")
    return (csrc / "cuda" / file).read_text().splitlines()[int(line) - 1].strip()


# Lanes that push to different blocks, which have banks of their own; jobs, which are written once a call.
MEANT = {
    "for (int k = 0; k < job_words; ++k) memory.put(layout.jobs + (job_words * i + k) * 16, words[k]);": 4,
    "jobs.team.push(Channel::states, g, half_steps_, jobs.lane, sends, job.reader_count, job.readers,": 3,
}


# Without optimisation 16 bytes move at once wherever the source says so.
FLAGS = ("-O0", "-DCUDA_EMULATION_INLINES", "-DONLY_FLOAT")


def test_no_line_of_a_kernel_has_conflicts(tmp_path: Path) -> None:
    program = build("race", SOURCE, *FLAGS)
    turns = turns_of(program, tmp_path, SOME_TEAMS)
    assert {text_of(place): most for place, most in turns.items() if most > 1} == MEANT
    for file in ("lanes.cuh", "jobs.cuh", "relaxation.cuh", "continual_update.cuh", "contrast.cuh"):
        assert any(place.startswith(f"teams/{file}") for place in turns)


# With maps: what happens once a call; cells, of which a channel may end within a warp; every second sum of a row; what
# is spread out over patches; lanes that push to different blocks. None is in the loops of products.
MEANT_OF_MAPS = {
    "memory_.put(joint.weights + (row * of_lanes + from % lanes) * bytes, weights[i]);": 3,
    "memory_.put(layout_.constants + cell * bytes, constant);": 2,
    "memory_.put(layout_.own_states + cell * bytes, p_.state[l][at]);": 2,
    "const auto state = memory_.get<Pack<T>>(layout_.own_states + own.v[3] * bytes);": 2,
    "const auto state = memory_.get<Pack<T>>(layout_.own_states + cell * bytes);": 2,
    "memory_.put(layout_.own_states + cell * bytes, next);": 2,
    "auto drive = memory_.get<Pack<T>>(layout_.constants + cell * bytes);": 2,
    "sum += memory_.get<Pack<T>>(first + block * joint.inbox_block * bytes);": 2,
    "if (k < there) sum.v[k] = memory_.get<T>(first + k * bytes);": 2,
    "if (part < parts) number += memory_.get<T>(at + part * of_part);": 2,
    "memory_.put(joint.spread + static_cast<int>(at + y % patch * patch + x % patch) * bytes,": 4,
    "if (exists) peer.push(to + (y * below.cell_row + x) * bytes, box_of_parts(turn, step), sum);": 3,
    "peer.push(to, box, shown);": 2,
}


def test_no_line_of_a_kernel_with_maps_has_conflicts(tmp_path: Path) -> None:
    program = library_program("race", flags=FLAGS)
    of_addresses: Turns = {}
    device = EmulatedDevice(program, tmp_path, shared_bytes=4 << 20, team="cluster", cluster_blocks=3,
                            counts_turns=True, turns=of_addresses)  # fmt: skip
    emulated_maps.call_every_op(device, "tied")  # with maps like those of MNIST's network
    turns = by_place(program, of_addresses)
    assert {text_of(place): most for place, most in turns.items() if most > 1} == MEANT_OF_MAPS
    for file in ("phase.cuh", "way_up.cuh", "way_down.cuh"):
        assert any(place.startswith(f"maps/{file}") for place in turns)


# Layouts with conflicts: what is put where in the source, and the lines that then have them.
FAULTS: list[tuple[str, str, str, list[str]]] = [
    (
        "layout.h",
        "return octet * (samples | 1) * number_bytes",
        "return octet * ((samples + 3) / 4 * 4) * number_bytes",
        ["for (int s = 0; s < Samples; ++s) state[s] = memory.get<Four<T>>(at + row * s);"],
    ),
    (
        "lanes.cuh",
        "const auto weight = memory.get<Four<T>>(weights + (j * 32 + lane) * four);",
        "const auto weight = memory.get<Four<T>>(weights + (j + lane * octet) * four);",
        ["const auto weight = memory.get<Four<T>>(weights + (j + lane * octet) * four);"],
    ),
]


def test_layouts_with_conflicts_are_found(tmp_path: Path) -> None:
    """All at once, in different lines."""
    for folder in ("csrc", "python_tests/support/cuda_kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file, right, wrong, _ in FAULTS:
        faulty = tmp_path / "csrc" / "cuda" / "teams" / file
        text = faulty.read_text()
        assert text.count(right) == 1
        faulty.write_text(text.replace(right, wrong))
    program = build("race", tmp_path / SOURCE.relative_to(ROOT), *FLAGS, copy=tmp_path)
    found = turns_of(program, tmp_path, ("cluster of 3",))
    conflicts = {text_of(place, tmp_path / "csrc") for place, most in found.items() if most > 1}
    assert conflicts >= {line for *_, lines in FAULTS for line in lines}
