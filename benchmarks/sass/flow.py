"""The control-flow graph of a function, and its loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from disassembly import Instruction

ENDS = ("EXIT", "RET", "BPT")  # after which a function does not go on, if they are unconditional


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Instructions that run one after the other, whichever way was taken to the first."""

    index: int
    instructions: list[Instruction]
    successors: list[int]  # of it the first is where it falls through, if it does


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A natural loop: all ways to its head go in there, and from every block one leads back to it."""

    head: int
    blocks: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    blocks: list[Block]
    reached: list[int]  # of them those to which a way leads
    loops: list[Loop]  # smallest first

    def instructions_of(self, loop: Loop) -> list[Instruction]:
        return [i for block in sorted(loop.blocks) for i in self.blocks[block].instructions]

    def loop_of(self, wanted: Callable[[Instruction], bool], share: float, own: float) -> Loop | None:
        """The largest loop that has this share of the wanted instructions and of whose own so many are wanted; None
        if there is none. Instructions that no way leads to do not count: a warp whose threads have parted has its own.
        """
        counts = {block: sum(map(wanted, self.blocks[block].instructions)) for block in self.reached}
        least = share * sum(counts.values())
        for loop in reversed(self.loops):
            found = sum(counts[block] for block in loop.blocks)
            if 0 < least <= found and found >= own * len(self.instructions_of(loop)):
                return loop
        return None


def goes_on(instruction: Instruction) -> bool:
    """Whether the next instruction can follow it."""
    if instruction.name in ("BRA", "JMP") and not instruction.is_conditional:
        return not instruction.targets or instruction.opcode.startswith("BRA.DIV")
    return instruction.name != "BRX" and (instruction.name not in ENDS or instruction.is_conditional)


def ways_of(instruction: Instruction) -> tuple[int, ...]:
    """Where it may branch to. A warp whose threads have parted takes BRA.DIV: here none has."""
    return () if instruction.opcode.startswith("BRA.DIV") else instruction.targets


def graph_of(instructions: Sequence[Instruction]) -> Graph:
    """Of one function, from its first instruction on; the routines that it calls are left alone."""
    starts = {instructions[0].address} if instructions else set()
    for instruction, following in pairwise(instructions):
        starts.update(ways_of(instruction))
        if ways_of(instruction) or not goes_on(instruction):
            starts.add(following.address)
    pieces: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.address in starts:
            pieces.append([])
        pieces[-1].append(instruction)
    at = {piece[0].address: index for index, piece in enumerate(pieces)}
    blocks = []
    for index, piece in enumerate(pieces):
        falls = [index + 1] if goes_on(piece[-1]) and index + 1 < len(pieces) else []
        blocks.append(Block(index, piece, [*falls, *(at[target] for target in ways_of(piece[-1]) if target in at)]))
    order = _reverse_postorder(blocks)
    return Graph(blocks, order, _loops_of(blocks, order))


def _loops_of(blocks: Sequence[Block], order: Sequence[int]) -> list[Loop]:
    place = {block: index for index, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for following in blocks[block].successors:
            before[following].append(block)
    above = _dominators(order, place, before)
    bodies: dict[int, set[int]] = {}
    for block in order:
        for head in blocks[block].successors:
            if _dominates(head, block, above):
                body = bodies.setdefault(head, {head})
                left = [block]
                while left:
                    if (inside := left.pop()) not in body:
                        body.add(inside)
                        left += before[inside]
    loops = [Loop(head, frozenset(body)) for head, body in bodies.items()]
    return sorted(loops, key=lambda loop: (sum(len(blocks[b].instructions) for b in loop.blocks), loop.head))


def _reverse_postorder(blocks: Sequence[Block]) -> list[int]:
    """Of what is reached from the first block."""
    order: list[int] = []
    seen = {0}
    ways = [(0, iter(blocks[0].successors))] if blocks else []
    while ways:
        block, following = ways[-1]
        if (new := next((b for b in following if b not in seen), None)) is None:
            order.append(block)
            ways.pop()
        else:
            seen.add(new)
            ways.append((new, iter(blocks[new].successors)))
    return order[::-1]


def _dominators(order: Sequence[int], place: dict[int, int], before: dict[int, list[int]]) -> dict[int, int]:
    """By block the nearest other that all ways to it go through (Cooper, Harvey and Kennedy's algorithm)."""
    above = {order[0]: order[0]} if order else {}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [b for b in before[block] if b in above]
            nearest = known[0]
            for other in known[1:]:
                while nearest != other:
                    if place[nearest] > place[other]:
                        nearest = above[nearest]
                    else:
                        other = above[other]
            if above.get(block) != nearest:
                above[block], changed = nearest, True
    return above


def _dominates(head: int, block: int, above: dict[int, int]) -> bool:
    while block != head and above[block] != block:
        block = above[block]
    return block == head
