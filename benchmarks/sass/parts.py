"""The parts of a step, found in a kernel's machine code by the functions that they were made from.

A part is one turn of a loop: of the multiply loop, of the loop that brings neighbours' states to shared memory, or of
the one in which units move. Names of functions and classes are those of csrc/cuda; wherever they stand there, and
however the compiler orders what it makes of them, they are found. Which way a turn goes is said for the case at hand by
what must happen and by what does not: see walk.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sources
from disassembly import Instruction
from flow import Graph, Loop, graph_of
from machine import Step, simulate
from sources import Lines
from walk import Event, NoWay, Test, around, unwanted_in

OUTPUTS = 16  # of a thread: 4 units times a pack of 4 samples
PACK = 4  # samples
# Clocks of a load whose instruction does not say from where, where the source does. An assumption.
FROM_ANOTHER_BLOCK = 210
# The compiler gives these any line that is near.
CONTROL = ("BRA", "BRX", "BREAK", "BSSY", "BSYNC", "BMOV", "NOP", "WARPSYNC", "YIELD")


@dataclass(frozen=True)
class Part:
    name: str
    does: str  # in one turn, in words
    items: int  # that a thread does in one turn
    steps: list[Step]  # a turn
    unwanted: int  # instructions in it that the case should not have: 0, or the way is not quite right
    generic_load: int | None = None

    def clocks(self, warps: int, turns: int = 1) -> float:
        """Simulated, of one turn of so many, by so many warps of a multiprocessor at once."""
        return simulate([self.steps * turns] * warps, self.generic_load).clocks / turns


@dataclass
class Kernel:
    """One kernel's instructions, beside the source text from which they were made."""

    name: str
    instructions: Sequence[Instruction]
    csrc: Path
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self.graph = graph_of(self.instructions)

    def lines(self, file: str, name: str, inside: str = "") -> Lines:
        return sources.function(self.csrc / file, name, inside)

    def count(self, loop: Loop, test: Test) -> int:
        return sum(map(test, self.graph.instructions_of(loop)))

    def loop_with_most(self, test: Test, loops: Sequence[Loop], what: str) -> Loop:
        """Of several, the longest: what the compiler has unrolled, not the loop for the rest."""
        counts = [self.count(loop, test) for loop in loops]
        if not loops or max(counts) == 0:
            raise NoWay(f"{self.name}: no loop for {what}")
        return max(zip(counts, loops, strict=True), key=lambda found: (found[0], len(found[1].blocks)))[1]


def any_of(*lines: Lines) -> Test:
    """Whether one of these made the instruction; not of those that only lead from one to another."""
    return lambda instruction: instruction.name not in CONTROL and any(one.made(instruction) for one in lines)


def made_by(lines: Lines, *names: str) -> Test:
    """Instructions of these names that the lines made, themselves or by what is inlined in them."""
    return lambda instruction: instruction.name in names and lines.made(instruction)


def multiplies(kernel: Kernel) -> list[Part]:
    """One turn of each loop of FmaTile::add: of the one that is unrolled for most neighbours, then of those for the
    rest."""
    fma = made_by(kernel.lines("cuda/tiles.cuh", "add", "FmaTile"), "FFMA")
    loops: dict[int, Loop] = {}  # by neighbours; of several, which other parts of the kernel have, the longest
    for loop in kernel.graph.innermost_loops():
        loops[kernel.count(loop, fma) // OUTPUTS] = loop
    loops.pop(0, None)
    if not loops:
        raise NoWay(f"{kernel.name}: no loop for FmaTile::add")
    return [
        Part(
            "multiply",
            "neighbours times 4 units, 4 samples",
            neighbours,
            around(kernel.graph, loop, [Event("FFMA", fma, neighbours * OUTPUTS)]),
            0,
        )
        for neighbours, loop in sorted(loops.items(), reverse=True)
    ]


def multiply_loop(kernel: Kernel) -> Loop:
    fma = made_by(kernel.lines("cuda/tiles.cuh", "add", "FmaTile"), "FFMA")
    return kernel.loop_with_most(fma, kernel.graph.innermost_loops(), "FmaTile::add")


def depth_loop(kernel: Kernel) -> Loop:
    """The loop over parts of the depth, of which each is brought while another is multiplied."""
    inner = multiply_loop(kernel)
    outer = next((loop for loop in kernel.graph.loops if loop.blocks > inner.blocks), None)
    if outer is None:
        raise NoWay(f"{kernel.name}: no loop around FmaTile::add")
    return outer


def staging(kernel: Kernel) -> Part:
    """One turn of the loop of Products::stage_rows: rows of neighbours' states, all of them there."""
    in_cluster = "InCluster" in kernel.name
    stage = kernel.lines("cuda/products.cuh", "stage_rows", "Products")
    row = kernel.lines("cuda/products.cuh", "row", "Products")
    states = "ClusterStates" if in_cluster else "GridStates"
    copies = made_by(stage, "LD") if in_cluster else made_by(stage, "LDGSTS")
    outer = depth_loop(kernel)
    inside = [loop for loop in kernel.graph.loops if loop.blocks < outer.blocks]
    loop = kernel.loop_with_most(copies, inside, "Products::stage_rows")
    count = kernel.count(loop, copies)
    # Where the loop looks up a layer's states, or which block has them, it must, for every copy: else it would copy
    # from address 0.
    looks_up = made_by(kernel.lines("cuda/states.cuh", "seen", states), *(("PRMT", "MAPA") if in_cluster else ("LDC",)))
    lookups = min(count, kernel.count(loop, looks_up))
    unwanted = any_of(row.matching(r"rows\.base \+"), kernel.lines("cuda/states.cuh", "state", states))
    zeros = any_of(stage.matching(r"Pack<T>\{\}"))
    steps = around(
        kernel.graph,
        loop,
        [Event("copies", copies, count), Event("rows looked up", looks_up, lookups)],
        lambda instruction: unwanted(instruction) or zeros(instruction),
    )
    latency = FROM_ANOTHER_BLOCK if in_cluster else None
    return Part("staging", "packs of 16 bytes", count, steps, unwanted_in(steps, unwanted), latency)


def epilogue(kernel: Kernel, slices: int) -> Part:
    """The sums of a tile's product of so many slices, and what its units become: sigmoid, prototypical dynamics, a
    bias, not nudged, no tolerance."""
    relaxation, activations = "cuda/relaxation.cuh", "model/activations.h"
    elementary, math = "model/elementary.h", "model/unit_math.h"
    take_in = kernel.lines(relaxation, "take_in", "Relaxation")
    move = kernel.lines(relaxation, "move", "Relaxation")
    next_state, rho = kernel.lines(math, "next_state"), kernel.lines(activations, "rho")
    of_sigmoid = kernel.lines(elementary, "steep_sigmoid")
    loop = kernel.graph.smallest_loop(take_in.made, share=0.9)
    if loop is None:
        raise NoWay(f"{kernel.name}: no loop for Relaxation::take_in")
    unwanted_lines = any_of(
        take_in.without(take_in.matching(r"take_in\(|Kind::move|move\(|return;|\}")),  # of other products
        move.matching(r"step\.keep|workspace\.drive|is_of_units|pull_of|seen"),
        next_state.matching(r"moved|clips"),  # of energy dynamics
        kernel.lines(activations, "rho_prime"),
    )
    of_rho = any_of(rho)

    def unwanted(instruction: Instruction) -> bool:
        of_another = of_rho(instruction) and not of_sigmoid.made(instruction)
        return unwanted_lines(instruction) or of_another

    sums = made_by(kernel.lines("cuda/tiles.cuh", "output", "FmaTile"), "LD", "LDS")
    sigmoid = made_by(of_sigmoid, "FFMA", "FMUL", "MUFU")
    bias = made_by(move.matching(r"biases\[l\]\[unit\]"), "LD", "LDG")
    events = [
        Event("sums of slices", sums, slices if kernel.count(loop, sums) else 0),
        Event("sigmoid", sigmoid, at_least=True),
        Event("bias", bias, min(1, kernel.count(loop, bias))),
    ]
    steps = around(kernel.graph, loop, events, unwanted)
    latency = FROM_ANOTHER_BLOCK if "InCluster" in kernel.name else None
    return Part("epilogue", "packs of 4 samples moved", 1, steps, unwanted_in(steps, unwanted), latency)
