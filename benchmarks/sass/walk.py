"""The instructions that a warp executes on its way through a function, chosen by what they were made from.

Which way a branch goes depends on numbers that no disassembly has. So a walk is told what it must do, by events that it
counts (a load of this function, so many times), and what it should not do (lines of source text that do not run in the
case at hand). Of all ways that do what they must, it takes the one with fewest unwanted instructions, and of those the
one with fewest instructions: so the result is what the case needs at least. All threads of a warp go the same way.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from disassembly import Instruction
from flow import Block, Graph, Loop
from machine import Step

UNWANTED = 1000  # instructions as which an unwanted one counts: more than any way around it has
Test = Callable[[Instruction], bool]


@dataclass(frozen=True)
class Event:
    """What a walk executes ``times`` times, or that often at least."""

    name: str
    test: Test
    times: int = 1
    at_least: bool = False

    def after(self, count: int, block: Block) -> Iterable[int]:
        """How often it may have happened after the block: an instruction with a predicate may do nothing."""
        found = [bool(instruction.predicate) for instruction in block.instructions if self.test(instruction)]
        least, most = count + found.count(False), count + len(found)
        if self.at_least:
            return {min(least, self.times), min(most, self.times)}
        return range(least, min(most, self.times) + 1)


class NoWay(ValueError):
    """Nothing in the function does what a walk must."""


def never(_: Instruction) -> bool:
    return False


def around(graph: Graph, loop: Loop, events: Sequence[Event] = (), unwanted: Test = never) -> list[Step]:
    """One turn of a loop, from its head back to it."""
    return walk(graph, loop, loop.head, loop.head, events, unwanted)


def walk(graph: Graph, loop: Loop, start: int, end: int, events: Sequence[Event], unwanted: Test) -> list[Step]:
    """From the first instruction of block ``start`` until ``end`` is entered, within a loop (Dijkstra's algorithm).
    Raises NoWay if the events cannot happen on the way."""
    costs = {block: _cost(graph.blocks[block], unwanted) for block in loop.blocks}
    nothing = (0,) * len(events)
    best: dict[tuple[int, tuple[int, ...]], int] = {}
    came: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}  # blocks, and what had happened before
    queue = [(0, start, nothing, -1, nothing)]
    while queue:
        cost, block, happened, last, before = heapq.heappop(queue)
        if block == end and last >= 0 and all(h == e.times for h, e in zip(happened, events, strict=True)):
            return _steps(graph, came, start, end, (last, before))
        if (last >= 0 and block == end) or (block, happened) in best:
            continue
        best[block, happened] = cost
        if last >= 0:
            came[block, happened] = (last, before)
        ways = [event.after(count, graph.blocks[block]) for event, count in zip(events, happened, strict=True)]
        for counts in product(*ways):
            for following in graph.blocks[block].successors:
                if following in loop.blocks:
                    heapq.heappush(queue, (cost + costs[block], following, counts, block, happened))
    wanted = ", ".join(f"{event.name} {event.times} times" for event in events)
    raise NoWay(f"no way through the loop with {wanted}")


def _cost(block: Block, unwanted: Test) -> int:
    # A routine that is called stands elsewhere: a walk that needs one would be counted too short.
    calls = sum(instruction.name == "CALL" for instruction in block.instructions)
    return len(block.instructions) + UNWANTED * (sum(map(unwanted, block.instructions)) + calls)


def _steps(
    graph: Graph,
    came: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]],
    start: int,
    end: int,
    last: tuple[int, tuple[int, ...]],
) -> list[Step]:
    way = [last]
    while way[-1] in came:
        way.append(came[way[-1]])
    blocks = [block for block, _ in reversed(way)] + [end]
    assert blocks[0] == start
    steps: list[Step] = []
    for block, following in pairwise(blocks):
        instructions = graph.blocks[block].instructions
        falls = following == block + 1 and not (
            instructions[-1].targets and graph.blocks[following].instructions[0].address in instructions[-1].targets
        )
        steps += [(instruction, False) for instruction in instructions[:-1]]
        steps.append((instructions[-1], bool(instructions[-1].targets) and not falls))
    return steps


def unwanted_in(steps: Sequence[Step], unwanted: Test) -> int:
    """Instructions of the walk that it could not do without, though they are not wanted, or that call routines."""
    return sum(unwanted(instruction) or instruction.name == "CALL" for instruction, _ in steps)
