"""Lanes of a warp that are served at once do not wait for each other's banks of shared memory in the CUDA kernels.

Counted without a GPU, on what the kernels' unchanged source reads and writes under cuda_emulation. What counts as one
instruction is said in cuda_emulation/runtime/bank_conflicts.cpp. Of tensor cores' operands and sums, a lane is taken to
read and write the elements that nvcc 13.0 gives it for sm_80 and sm_90. Memory of the other blocks of a cluster counts
as if it had the same banks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from cuda_emulation.builds import build
from emulated_device import EmulatedDevice
from emulated_kernels import READOUT, SOURCE, call_every_op
from kept_programs import run
from project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# Where weights and states lie, precision, numbers, and samples: all that a pass can have. Streamed ones have a readout.
Case = tuple[str, str, torch.dtype, int]
PLACES = ("resident", "streamed")
GRID: list[Case] = [
    *((PLACES[batch // 8 % 2], "exact", torch.float32, batch) for batch in range(8, 65, 8)),
    *((PLACES[batch // 8 % 2], "exact", torch.float64, batch) for batch in range(8, 33, 8)),
    *((PLACES[batch // 16 % 2], "tf32", torch.float32, batch) for batch in range(16, 65, 16)),
    *((PLACES[batch // 16 % 2], "bf16", torch.float32, batch) for batch in range(16, 65, 16)),
]
CLUSTER: list[Case] = [
    *(("cluster", "exact", torch.float32, batch) for batch in (*range(8, 65, 8), 104)),
    *(("cluster", "exact", torch.float64, batch) for batch in range(8, 33, 8)),
    *(("cluster", "tf32", torch.float32, batch) for batch in range(16, 65, 16)),
    *(("cluster", "bf16", torch.float32, batch) for batch in range(16, 65, 16)),
]
# Full tiles: units that are left out at a tile's end take no turns, but part lanes that act at once.
WIDTHS = (16, 48, 32, 16)

Turns = dict[str, int]  # most of any access, by line of the kernels' source: "file.cuh:123"


def places_of(program: Path, addresses: list[str]) -> list[str]:
    """Of instructions: the line of the kernels that is at work there, whatever moves a pack for it; "": none is."""
    done = run("addr2line", "-a", "-i", "-e", program, *(f"0x{address}" for address in addresses))
    assert done.returncode == 0, done.stderr
    places = []
    for frames in re.split(r"^0x\w+\n", done.stdout, flags=re.MULTILINE)[1:]:
        lines = re.findall(r"/csrc/cuda/(\w+\.cuh:\d+)", frames)
        places.append(next((line for line in lines if not line.startswith("pack.cuh")), ""))
    assert len(places) == len(addresses)
    return places


def turns_of(program: Path, folder: Path, cases: list[Case]) -> Turns:
    of_addresses: Turns = {}
    for place, precision, dtype, batch in cases:
        low_rank = batch // 8 % 4 < 2  # C-EP's inner updates
        of_network = {"shape": (WIDTHS, batch), **(READOUT if place == "streamed" else {})}
        clusters = {"cluster_blocks": 2 if place == "cluster" else 0, "resident": place != "streamed"}
        device = EmulatedDevice(program, folder, multiprocessors=2, shared_bytes=4 << 20, precision=precision,
                                low_rank=low_rank, counts_turns=True, turns=of_addresses, **clusters)  # fmt: skip
        call_every_op(device, dtype, of_network, {})
    found: Turns = {}
    for place, turns in zip(places_of(program, list(of_addresses)), of_addresses.values(), strict=True):
        found[place] = max(found.get(place, 0), turns)
    found.pop("", None)  # the emulation's own way of moving the elements of a tile
    return found


def text_of(place: str, csrc: Path = ROOT / "csrc") -> str:
    file, line = place.split(":")
    return (csrc / "cuda" / file).read_text().splitlines()[int(line) - 1].strip()


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Turns]:
    folder = tmp_path_factory.mktemp("cuda_banks")
    program = build("race", SOURCE, "-O0")  # -O0: moves 16 bytes wherever the source says so
    return cache(lambda which: turns_of(program, folder, {"grid": GRID, "cluster": CLUSTER}[which]))


@pytest.mark.parametrize("exchange", ["grid", "cluster"])
def test_no_line_of_a_kernel_has_conflicts(turns: Callable[[str], Turns], exchange: str) -> None:
    assert {text_of(place): most for place, most in turns(exchange).items() if most > 1} == {}


def test_the_accesses_of_tiles_are_met(turns: Callable[[str], Turns]) -> None:
    met = {text_of(place) for place in chain(turns("grid"), turns("cluster"))}
    for file in ("tiles.cuh", "contrast.cuh"):
        source = (ROOT / "csrc" / "cuda" / file).read_text()
        accesses = re.findall(r"^ *(.*\b(?:load_pack|store_pack|\w+_matrix_sync)\(.*)$", source, re.MULTILINE)
        assert len(accesses) > 4
        assert set(accesses) <= met


# Layouts with conflicts: what is put where in the source, and the lines that then have them.
FAULTS: list[tuple[str, list[tuple[str, str]], list[str]]] = [
    (
        "contrast.cuh",
        [("stride = pass + pack;  //", "stride = pass;  //"), ("stride = pass + pack;\n", "stride = pass;\n")],
        [
            "const Pack<T> y = load_pack(other + (term * tile_others + k) * stride + b);",
            "if (column_of(i) < pass) store_pack(to + row_of(i) * stride + column_of(i), got);",
        ],
    ),
    (
        "problem.h",
        [("tensor_padding = 8;", "tensor_padding = 0;")],
        [
            "wmma::load_matrix_sync(w, left + k * left_stride, left_stride);",
            "wmma::load_matrix_sync(s, rows + k * own_.stride + own_.column, own_.stride);",
        ],
    ),
    (
        "products.cuh",
        [("const bool flips = i / tile_units % 2;", "const bool flips = false;")],
        ["at[(flips ? j ^ flip : j) * stride] = staged<Number>(flips ? got.v[j ^ flip] : got.v[j]);"],
    ),
    (
        "tiles.cuh",
        [
            ("group % 32 / packs_beside(group) * 4", "group / (pass / pack) * 4"),
            ("(group / 32 * 8 + group % 32 % packs_beside(group)) * pack", "group % (pass / pack) * pack"),
        ],
        ["row[n] = load_pack(from_row);"],
    ),
    (
        "states.cuh",
        [("return packs % 8 * pack;", "return unit % 8 * pack;")],
        [
            "const Pack<T> state = load_pack(states.state(step.from, l, unit) + column);",
            "store_pack(states.state(step.to, l, unit) + column, next);",
        ],
    ),
    (
        "products.cuh",
        [("!of.left.base ? 3 : bits_of_packs;", "!of.left.base ? bits_of_packs : bits_of_packs;")],
        ["Pack<T> got = load_some(this->row(of.left, line) + first, there);"],
    ),
]


def test_layouts_with_conflicts_are_found(tmp_path: Path) -> None:
    """All at once, in different lines."""
    for folder in ("csrc", "python_tests/support/cuda_kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file, changes, _ in FAULTS:
        faulty = tmp_path / "csrc" / "cuda" / file
        text = faulty.read_text()
        for right, wrong in changes:
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        faulty.write_text(text)
    program = build("race", tmp_path / SOURCE.relative_to(ROOT), "-O0", copy=tmp_path)
    cases = (("streamed", "exact", 40), ("streamed", "tf32", 32), ("cluster", "exact", 40))
    found = turns_of(program, tmp_path, [(place, p, torch.float32, batch) for place, p, batch in cases])
    conflicts = {text_of(place, tmp_path / "csrc") for place, most in found.items() if most > 1}
    assert conflicts >= set(chain.from_iterable(lines for _, _, lines in FAULTS))
