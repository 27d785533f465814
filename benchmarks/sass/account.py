"""What the simulated parts of a step of a dense network add up to, for a launch as the planner plans it on an H100.

A step's time is that of its busiest block: of each of its tiles, and each pass through the samples, the products with
both neighbour layers, the staging of their states in parts of the depth, and the epilogue; then the barrier of all
blocks. That barrier is measured; what else a step does is not in it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import simulate
from parts import Kernel, Part, epilogue, multiplies, staging

H100: dict[str, Any] = {
    "compute_capability": 90,
    "multiprocessors": 132,
    "shared_bytes": 227 * 1024,
    "cluster_blocks": 16,
}
CLOCKS_OF_A_MICROSECOND = 1980  # the H100's highest clock
GRID_BARRIER_US = 2.6  # measured on an H100: 18 % of the samples of a step of 14.3 us, see benchmarks/README.md
THREADS, WARPS, TILE_UNITS = 256, 8, 16
PACK = 4


@dataclass(frozen=True)
class Case:
    name: str  # in cuda_steps.csv
    widths: tuple[int, ...]
    batch: int


CASES = (
    Case("ep-1h-b20", (784, 512, 10), 20),
    Case("ep-2h-b20", (784, 512, 512, 10), 20),
    Case("ep-2h-b64", (784, 512, 512, 10), 64),
    Case("ep-2h-b256", (784, 512, 512, 10), 256),
)


@dataclass(frozen=True)
class StepRow:
    """Microseconds of an un-nudged step. What was measured was so with the kernels, and planned by the planner, of the
    commit that the table of measurements names: perhaps by another exchange."""

    case: str
    batch: int
    exchange: str
    blocks: int
    multiply_us: float
    staging_us: float
    epilogue_us: float
    barrier_us: float | None  # None: not known
    simulated_us: float  # of all these
    measured_exchange: str
    measured_us: float | None  # None: it was not


def planned(case: Case) -> dict[str, Any]:
    """The launch on an H100."""
    from ceprop_cuda import _C

    kind: dict[str, Any] = {
        "readout": False,
        "energy": False,
        "asynchronous": False,
        "number_bytes": 4,
        "precision": "exact",
    }
    return _C.launch_plan(**H100, widths=list(case.widths), batch=case.batch, **kind)


class Account:
    """Of one kernel: its parts, found once, and what they take for tiles of any depth."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._multiplies = multiplies(kernel)
        self._staging = staging(kernel)
        stage = kernel.lines("cuda/products.cuh", "stage_rows", "Products")
        # Kernels up to commit 72bc7ef bring whole parts, however few rows are left, and count packs, not rows.
        self._brings_whole_parts = bool(stage.matching(r"layout\.depth").numbers)
        self._brings_rows = not stage.matching(r"% packs").numbers
        self._clocks: dict[tuple[str, int], float] = {}

    def step(self, case: Case, plan: dict[str, Any], measured: Mapping[str, str]) -> StepRow:
        """A step of this plan; ``measured``: the case's line of measurements."""
        tiles = [self._tiles(case, layers, plan) for layers in plan["layers_of_tiles"]]
        multiply, stage, move = (clocks / CLOCKS_OF_A_MICROSECOND for clocks in max(tiles, key=sum))
        barrier = None if plan["exchange"] == "cluster" else GRID_BARRIER_US
        return StepRow(
            case.name,
            case.batch,
            plan["exchange"],
            plan["blocks"],
            multiply,
            stage,
            move,
            barrier,
            multiply + stage + move + (barrier or 0),
            measured.get("exchange", ""),
            float(measured["free_us"]) if "free_us" in measured else None,
        )

    def _tiles(self, case: Case, layers: Sequence[int], plan: dict[str, Any]) -> tuple[float, float, float]:
        """Clocks of a block that has tiles of these layers: of products, of staging, and of epilogues."""
        at_once, depth, columns = plan["samples_at_once"], plan["depth_at_once"], plan["columns"]
        groups = TILE_UNITS // 4 * (at_once // PACK)
        slices = THREADS // groups
        multiply = stage = move = 0.0
        for layer in layers:
            below = case.widths[layer] if layer > 0 else 0
            above = case.widths[layer + 2] if layer + 2 < len(case.widths) else 0
            parts = [min(depth, side - k) for side in (below, above) for k in range(0, side, depth)]
            multiply += sum(self.multiply_clocks(math.ceil(rows / slices)) for rows in parts)
            stage += sum(self.staging_clocks(depth if self._brings_whole_parts else rows, at_once) for rows in parts)
            move += self.epilogue_clocks(slices, math.ceil(4 * groups / 32))
        passes = math.ceil(columns / at_once)
        return multiply * passes, stage * passes, move * passes

    def multiply_clocks(self, neighbours: int) -> float:
        """Of a part of the depth of which every slice has so many."""
        if ("multiply", neighbours) not in self._clocks:
            steps, left = [], neighbours
            for part in self._multiplies:  # unrolled, then for the rest
                steps += part.steps * (left // part.items)
                left %= part.items
            if left:
                steps += self._multiplies[-1].steps
            self._clocks["multiply", neighbours] = simulate([steps] * WARPS).clocks
        return self._clocks["multiply", neighbours]

    def staging_clocks(self, rows: int, samples: int) -> float:
        """Of a part of the depth: so many rows of neighbours' states."""
        packs = samples // PACK
        lanes = math.ceil(packs / 8) * 8 if "InCluster" in self.kernel.name else packs
        each = math.ceil(rows / (THREADS // lanes)) if self._brings_rows else math.ceil(rows * lanes / THREADS)
        if ("staging", 0) not in self._clocks:
            self._clocks["staging", 0] = self._staging.clocks(WARPS, 8) / self._staging.items
        return self._clocks["staging", 0] * each

    def epilogue_clocks(self, slices: int, warps: int) -> float:
        """Of a tile, by so many warps at once, each of which has one pack of samples a thread."""
        if ("epilogue", slices) not in self._clocks:
            self._clocks["epilogue", slices] = epilogue(self.kernel, slices).clocks(warps)
        return self._clocks["epilogue", slices]

    def parts(self, slices: int) -> list[Part]:
        return [*self._multiplies[:1], self._staging, epilogue(self.kernel, slices)]


def measurements(path: Path) -> tuple[dict[str, dict[str, str]], str]:
    """Lines of measured steps by case, and the commit whose kernels they are of."""
    lines = path.read_text().splitlines()
    commit = next((line.partition(": ")[2] for line in lines if line.startswith("# commit: ")), "unknown")
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["case"]: row for row in rows}, commit
