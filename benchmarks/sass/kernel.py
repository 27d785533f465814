"""A kernel's instructions beside the source text that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sources
from disassembly import Instruction
from flow import Graph, Loop, graph_of
from sources import Lines
from walk import NoWay, Test

# The compiler gives these any line that is near.
CONTROL = ("BRA", "BRX", "BREAK", "BSSY", "BSYNC", "BMOV", "NOP", "WARPSYNC", "YIELD")
RELAXATION, OF_MAPS = "cuda/teams/relaxation.cuh", "cuda/maps/phase.cuh"
# A loop over steps has so much of what its source makes, and so many of its own instructions are made by it: the loop
# over phases has few more.
OF_A_STEP, OWN = 0.9, 0.97
RESTING, MOVING = "weights rest", "weights move"  # the loops over steps


@dataclass
class Kernel:
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

    def loops_in(self, loop: Loop) -> list[Loop]:
        """Smallest first."""
        return [one for one in self.graph.loops if one.blocks < loop.blocks]

    def smallest_with_most(self, test: Test, loops: Sequence[Loop]) -> Loop:
        """Of the loops that have most of such instructions the smallest."""
        most = max((self.count(loop, test) for loop in loops), default=0)
        if most == 0:
            raise NoWay(f"{self.name}: no loop has what is looked for")
        return next(loop for loop in loops if self.count(loop, test) == most)

    def step_loops(self) -> dict[str, Loop]:
        """The loops over steps, by whether weights rest or move in them. ValueError if there is none."""
        if self.name.endswith("Maps"):
            body = sources.loop_around(self.csrc / OF_MAPS, self.lines(OF_MAPS, "run", "Phase"), "compute")
            return {RESTING: self._only_loop(body)}
        body = sources.loop_around(self.csrc / RELAXATION, self.lines(RELAXATION, "run"), "step")
        rounds = self.lines("cuda/teams/run.cuh", "run_rounds")  # whose weights rest
        found = {}
        for what, rests in ((RESTING, True), (MOVING, False)):
            loop = self.graph.loop_of(lambda i, rests=rests: body.made(i) and rounds.made(i) == rests, OF_A_STEP, OWN)
            if loop is not None:
                found[what] = loop
        moves = ", Moves" in self.name
        expected = [MOVING] if moves and ", InGrid" in self.name else [RESTING, MOVING] if moves else [RESTING]
        if list(found) != expected:
            raise ValueError(f"{self.name}: loops over steps are {[*found]}, expected {expected}")
        return found

    def _only_loop(self, body: Lines) -> Loop:
        loop = self.graph.loop_of(body.made, OF_A_STEP, OWN)
        if loop is None:
            raise ValueError(f"{self.name}: there is no loop over steps")
        return loop


def any_of(*lines: Lines) -> Test:
    """Whether one of these made the instruction; not of those that only lead from one to another."""
    return lambda instruction: instruction.name not in CONTROL and any(one.made(instruction) for one in lines)


def made_by(*lines: Lines, names: Sequence[str]) -> Test:
    """Instructions of these names that all of the lines made, themselves or by what is inlined in them."""
    return lambda instruction: instruction.name in names and all(one.made(instruction) for one in lines)
