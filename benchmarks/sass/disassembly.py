"""What ``nvdisasm -hex -gi -c`` prints of a binary, as instructions: SASS, the machine code of NVIDIA's GPUs.

An instruction has two words of 64 bits. The upper bits of the second are what the assembler, ptxas, tells the
scheduler, which looks at nothing else before it issues the next instruction of a warp:

    bits 41-44  stall     clocks until the warp's next instruction may issue
    bits 46-48  sets      the scoreboard that is held until the result is there; 7: none
    bits 49-51  frees     the scoreboard that is held until the operands have been read; 7: none
    bits 52-57  waits     a bit for each scoreboard that must be free before this one issues

As found by microbenchmarks, which others published (Jia et al., "Dissecting the NVIDIA Volta GPU architecture", 2018);
NVIDIA documents none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

NONE = 7  # as a scoreboard
LABEL = re.compile(r"([.$]\S+):$")
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
FIRST_WORD = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([^\s;]+)\s*(.*?)\s*"
    r'(?:\(\*"BRANCH_TARGETS ([^"]*)"\*\))?\s*;?\s*/\* 0x([0-9a-f]{16}) \*/'
)
SECOND_WORD = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
REFERENCE = re.compile(r"`\(([^)]+)\)")


class Frame(NamedTuple):
    """A line of source text."""

    file: str
    line: int


class Control(NamedTuple):
    """What the assembler tells the scheduler."""

    stall: int
    sets: int
    frees: int
    waits: int

    def needs(self, scoreboard: int) -> bool:
        return bool(self.waits >> scoreboard & 1)


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    address: int
    predicate: str  # "@P0", "@!UP1"; "" if there is none
    opcode: str  # with its suffixes: "LDS.128"
    operands: str
    targets: tuple[int, ...]  # addresses to which it may branch
    callee: str  # of a CALL: the label
    control: Control
    chain: tuple[Frame, ...]  # where it comes from, and where that was inlined, innermost first

    @property
    def name(self) -> str:
        """Of the opcode, without suffixes."""
        return self.opcode.partition(".")[0]

    @property
    def is_conditional(self) -> bool:
        """As a branch: by its predicate, or by one among its operands, as in ``BRA P2, `(.L_x_1)``."""
        return self.predicate not in ("", "@PT") or bool(re.match(r"!?U?P\d", self.operands.partition("`")[0].strip()))


def control_of(second_word: int) -> Control:
    return Control(second_word >> 41 & 15, second_word >> 46 & 7, second_word >> 49 & 7, second_word >> 52 & 63)


def read(lines: Iterable[str], wanted: Callable[[str], bool] = lambda symbol: True) -> dict[str, list[Instruction]]:
    """By symbol the instructions of those functions that are ``wanted``, with the routines that they call."""
    functions: dict[str, list[Instruction]] = {}
    reader: _Reader | None = None
    for line in lines:
        if line.startswith((".text.", "//------")):
            if reader:
                functions[reader.symbol] = reader.finished()
            symbol = line.strip().removeprefix(".text.").removesuffix(":")
            reader = _Reader(symbol) if line.startswith(".text.") and wanted(symbol) else None
        elif reader:
            reader.take(line)
    if reader:
        functions[reader.symbol] = reader.finished()
    return functions


class _Reader:
    """Of one function."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._labels: dict[str, int] = {}
        self._new_labels: list[str] = []  # of the next instruction
        self._chain: tuple[Frame, ...] = ()
        self._new_chain: list[Frame] = []
        self._chains: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}  # each once
        self._frames: dict[str, Frame] = {}
        self._read: list[tuple[re.Match[str], tuple[Frame, ...], int]] = []  # first word, chain, second word

    def take(self, line: str) -> None:
        if "//##" in line:
            self._new_chain.append(self._frame(line))
        elif label := LABEL.match(line):
            self._new_labels.append(label[1])
        elif first := FIRST_WORD.match(line):
            if self._new_chain:
                chain = tuple(self._new_chain)
                self._chain = self._chains.setdefault(chain, chain)
                self._new_chain = []
            self._labels.update(dict.fromkeys(self._new_labels, int(first[1], 16)))
            self._new_labels = []
            self._read.append((first, self._chain, 0))
        elif self._read and (second := SECOND_WORD.match(line)):
            self._read[-1] = (*self._read[-1][:2], int(second[1], 16))

    def _frame(self, line: str) -> Frame:
        text = line.partition(" inlined at ")[0]
        if text not in self._frames:
            found = FRAME.search(text)
            if found is None:
                raise ValueError(f"no file and line in {line!r}")
            self._frames[text] = Frame(os.path.normpath(found[1]), int(found[2]))
        return self._frames[text]

    def finished(self) -> list[Instruction]:
        return [self._instruction(*read) for read in self._read]

    def _instruction(self, first: re.Match[str], chain: tuple[Frame, ...], second: int) -> Instruction:
        address, predicate, opcode, operands, table, _ = first.groups()
        named = table.split(",") if table else REFERENCE.findall(operands)
        # Other instructions name labels too, as BSSY does of where it is ended: these do not branch.
        jumps = opcode.startswith(("BRA", "BRX", "JMP"))
        targets = (
            tuple(self._labels[label.strip()] for label in named if label.strip() in self._labels) if jumps else ()
        )
        callee = named[0] if opcode.startswith("CALL") and named else ""
        return Instruction(
            int(address, 16), predicate or "", opcode, operands, targets, callee, control_of(second), chain
        )
