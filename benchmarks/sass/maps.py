"""What a step takes clusters with maps on an H100: counted in the machine code and simulated, without a GPU.

    python benchmarks/sass/maps.py [--sources csrc] [--out benchmarks/results]

Compiles the kernel of csrc/cuda/maps for sm_90. Follows what each warp of a block executes in a step of P-conv's
network, as the library that is built here plans it on an H100: synchronous, prototypical, not nudged, with an
activation that takes no time. Replays that for all warps of a block, and adds twice what an exchange by mail takes, as
measured alone. Prints a Markdown table and writes sass_maps.csv. All times are predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import compiled
from flow import Loop
from kernel import RESTING, Kernel, any_of, made_by
from machine import Step, simulate
from teams import CLOCKS_OF_A_MICROSECOND, EXCHANGE_CLOCKS, H100
from walk import Event, Test, around, never

FILE, NAME, CASE = "cuda/maps/kernels.cu", "float, Maps", "p-conv-b20"
UP, DOWN, PHASE = "cuda/maps/way_up.cuh", "cuda/maps/way_down.cuh", "cuda/maps/phase.cuh"
WARPS, LANES = 16, 32


@dataclass(frozen=True)
class MapRow:
    """A part of a step, or all of it, of one block. Instructions are counted, clocks simulated."""

    part: str
    instructions: int  # of the warp that has most
    multiply_adds: int  # among them
    clocks: int
    step_us: float  # 0 of a part


class Parts:
    """What the warps of a block execute in the parts of a step."""

    def __init__(self, kernel: Kernel, blocks: int) -> None:
        self.kernel, self.blocks = kernel, blocks
        self.step = kernel.step_loops()[RESTING]
        self.loops = [*kernel.loops_in(self.step), self.step]
        self.barrier: Step = next(
            (i, False) for i in kernel.graph.instructions_of(self.step) if i.opcode.startswith("BAR.SYNC")
        )

    def largest_with(self, test: Test, count: int) -> Loop:
        """Of the loops that have so many of such instructions."""
        return max(
            (loop for loop in self.loops if self.kernel.count(loop, test) == count), key=lambda loop: len(loop.blocks)
        )

    def largest_within(self, file: str, name: str) -> Loop:
        """Of the loops that a function has nearly all instructions of, the first of the largest."""
        lines = any_of(self.kernel.lines(file, name))
        own = [loop for loop in self.loops if self.kernel.count(loop, lines) > 0.7 * self.kernel.count(loop, _counts)]
        return max(own, key=lambda loop: self.kernel.count(loop, lines))

    def turn(self, loop: Loop, events: Sequence[Event], unwanted: Test = never) -> list[Step]:
        return around(self.kernel.graph, loop, events, unwanted)

    def way_up(self, joint: dict[str, int]) -> list[Step]:
        fma = made_by(self.kernel.lines(UP, "way_up"), names=("FFMA",))
        of_row = LANES * joint["kernel"]
        rows = joint["of_up"] * joint["kernel"]
        return self.turn(self.largest_with(fma, of_row), [Event("products", fma, rows * of_row)])

    def pool(self, joint: dict[str, int]) -> list[Step]:
        lines = self.kernel.lines(PHASE, "pool")
        sums = made_by(lines.matching("number \\+="), names=("LDS",))
        spread = made_by(lines.matching("memory_.put\\(joint.spread|place == picked"), names=("STS",))
        events = [
            Event("sums", sums, joint["places"] * joint["up_parts"]),
            Event("spread", spread, joint["places"]),
        ]
        return self.turn(self.largest_within(PHASE, "pool"), events)

    def way_down(self, joint: dict[str, int]) -> list[Step]:
        """Of every window one position is not zero."""
        lines, taps = self.kernel.lines(DOWN, "way_down"), joint["kernel"] ** 2
        fma, vote = made_by(lines, names=("FFMA",)), made_by(lines, names=("VOTE",))
        store = made_by(lines.matching(r"memory\.put\(place"), names=("STS",))
        region = (3 + joint["kernel"]) ** 2
        loop = next(
            loop
            for loop in self.loops
            if self.kernel.count(loop, fma) == 16 * taps and self.kernel.count(loop, store) == region
        )
        events = [
            Event("channels", vote, joint["of_down"]),
            Event("products", fma, taps * 16 // joint["places"] * joint["of_down"]),
            Event("stored", store, region),
        ]
        return self.turn(loop, events)

    def gather(self) -> list[Step]:
        """Patches that begin where 16 bytes do."""
        lines = self.kernel.lines(DOWN, "sum_of_regions")
        return self.turn(
            self.largest_within(DOWN, "gather_regions"), [Event("sums", made_by(lines, names=("LDS",)), 16)]
        )

    def multiply(self, joint: dict[str, int]) -> tuple[list[Step], list[Step]]:
        """A unit above, and an own unit below."""
        lines = self.kernel.lines(PHASE, "multiply")
        rows = made_by(lines, names=("SHFL",))
        up, down = (made_by(lines.matching(f"sum|{states}"), names=("FFMA",)) for states in ("i \\* bytes", "row"))
        above = next(loop for loop in self.loops if self.kernel.count(loop, rows) == 5)
        below = next(
            loop
            for loop in self.loops
            if self.kernel.count(loop, made_by(lines.matching("below.downs"), names=("STS",))) and loop != above
        )
        of_lane = -(-joint["own_below"] // LANES)
        return (
            self.turn(above, [Event("products", up, of_lane), Event("sums", rows, 5)]),
            self.turn(below, [Event("products", down, joint["units_above"])]),
        )

    def move(self) -> list[Step]:
        """Units below a convolution, 16 bytes of them."""
        lines = self.kernel.lines
        from_above = made_by(lines(PHASE, "from_above").matching("sum \\+="), names=("LDS",))
        push = made_by(lines(PHASE, "move").matching("peer.push\\(to, box, shown\\)"), names=("STAS",))
        unwanted = any_of(
            lines("model/elementary.h", "steep_sigmoid"),
            lines("model/unit_math.h", "next_state").matching(r"moved|clips"),
            lines("model/activations.h", "rho_prime"),
        )
        events = [Event("parts", from_above, self.blocks), Event("pushed", push, self.blocks)]
        return self.turn(self.largest_within(PHASE, "move"), events, unwanted)


def _counts(_: Any) -> bool:
    return True


def rows_of(kernel: Kernel, facts: dict[str, Any]) -> list[MapRow]:
    parts, joints = Parts(kernel, facts["blocks"]), facts["joints"]
    found: list[tuple[str, list[list[Step]]]] = []

    def add(part: str, items: int, own: list[Step], is_dense: bool = False) -> None:
        """Items of a part shared among the warps; those of dense connections go to the last warps first, the others end
        with a barrier."""
        traces = [own * len(range(warp, items, WARPS)) for warp in range(WARPS)]
        found.append((part, traces[::-1] if is_dense else [[*trace, parts.barrier] for trace in traces]))

    def of_threads(count: int) -> int:
        """How many items of 32 lanes."""
        return -(-count // LANES)

    for joint in reversed(joints):
        if not joint["kernel"]:
            above, below = parts.multiply(joint)
            add("dense, up", joint["units_above"], above, is_dense=True)
            add("dense, down", of_threads(joint["own_below"]), below, is_dense=True)
            continue
        add("convolution, up", joint["up_items"], parts.way_up(joint))
        add("pooling", of_threads(joint["own_above"]), parts.pool(joint))
        for _ in range(joint["groups"]):
            add("convolution, down", joint["patches"] * joint["down_parts"], parts.way_down(joint))
            add("sums of regions", joint["packs_below"], parts.gather())
    packs = sum(of_threads(joint["own_below"] // 4) for joint in joints) + 1
    add("moves", packs, parts.move())
    rows = [row_of(part, traces) for part, traces in found]
    whole = [[step for _, traces in found for step in traces[warp]] for warp in range(WARPS)]
    clocks = simulate(whole).clocks + 2 * EXCHANGE_CLOCKS["cluster"]
    return [*rows, row_of("all, with two exchanges", whole, clocks)]


def row_of(part: str, traces: Sequence[Sequence[Step]], clocks: int = 0) -> MapRow:
    longest = max(traces, key=len)
    return MapRow(
        part,
        len(longest),
        sum(instruction.name == "FFMA" for instruction, _ in longest),
        clocks or simulate(traces).clocks,
        clocks / CLOCKS_OF_A_MICROSECOND,
    )


def markdown_of(rows: Sequence[MapRow]) -> str:
    from ceprop_cuda.output.tables import markdown

    lines = [["part of a step", "instructions", "FFMA", "clocks", "us, predicted"]]
    for row in rows:
        lines.append([row.part, *map(str, (row.instructions, row.multiply_adds, row.clocks))])
        lines[-1].append(f"{row.step_us:.2f}" if row.step_us else "")
    return markdown(lines)


def main() -> None:
    import torch

    from ceprop_cuda import _C, ops
    from ceprop_cuda.bench.cases import chosen_cases

    csrc, out = compiled.asked(__doc__)
    tools = compiled.tools()
    if tools is None:
        return
    (case,) = chosen_cases([CASE])
    net, x, _ = case.problem(torch.float32)
    settings = ops.team_settings(net.circuit(), x, continual=False, tolerance=False)
    settings.pop("index")
    facts = _C.map_plan(**H100, **settings)
    found = compiled.kernels(*tools, csrc / FILE, lambda name: name == NAME)
    rows = rows_of(Kernel(NAME, found[NAME], csrc), facts)
    print(f"{CASE}, clusters of {facts['blocks']}:\n\n{markdown_of(rows)}\n")
    if out:
        compiled.write_table(out / "sass_maps.csv", rows, tools[0], csrc)


if __name__ == "__main__":
    main()
