"""Where functions and loops stand in the kernels' source text, by their names: lines move, names stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from disassembly import Frame, Instruction


@dataclass(frozen=True)
class Lines:
    """Of one file, from the first to the last."""

    file: str
    numbers: frozenset[int]

    def has(self, frame: Frame) -> bool:
        return frame.line in self.numbers and frame.file == self.file

    def made(self, instruction: Instruction) -> bool:
        """Whether they made the instruction, themselves or by what is inlined in them."""
        return any(map(self.has, instruction.chain))

    def wrote(self, instruction: Instruction) -> bool:
        """Whether it comes from these lines themselves."""
        return bool(instruction.chain) and self.has(instruction.chain[0])

    def matching(self, pattern: str) -> Lines:
        """Those that match; none is no fault, as other sources may have no such line."""
        text = Path(self.file).read_text().splitlines()
        return Lines(self.file, frozenset(n for n in self.numbers if re.search(pattern, text[n - 1])))


@lru_cache
def bare(path: Path) -> str:
    """A file's text with blanks for comments, strings and characters, so that its braces are those of the code."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\''
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), path.read_text(), flags=re.DOTALL)


def function(path: Path, name: str, inside: str = "") -> Lines:
    """The body of a function, and its first line; ``inside``: of this class, else the first in the file."""
    text = bare(path)
    begin, end = 0, len(text)
    if inside:
        begin, end = next(_braced(text, rf"\b(?:class|struct)\s+{inside}\b[^;{{]*", 0, end), (0, 0))
        if end == 0:
            raise ValueError(f"no class {inside} in {path}")
    # A name, its parameters in brackets, and then a body: not a call, after which there is none.
    found = next(_braced(text, rf"\b{name}\s*\((?:[^(){{}};]|\([^(){{}};]*\))*\)[^;{{}}()]*", begin, end), None)
    if found is None:
        raise ValueError(f"no function {name} in {inside or 'the whole'} of {path}")
    return _lines(path, *found)


def loop_around(path: Path, lines: Lines, call: str) -> Lines:
    """The smallest ``for`` with braces among these lines that has the call in its body."""
    text = bare(path)
    found = [
        _lines(path, begin, end)
        for begin, end in _braced(text, r"\bfor\s*\((?:[^(){}]|\([^(){}]*\))*\)\s*", 0, len(text))
        if re.search(rf"\b{call}\s*\(", text[begin:end])
    ]
    within = [loop for loop in found if loop.numbers <= lines.numbers]
    if not within:
        raise ValueError(f"no loop around {call}() in {path}")
    return min(within, key=lambda loop: len(loop.numbers))


def _braced(text: str, head: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where ``head`` is followed by braces, from its first character to the brace that closes."""
    for found in re.finditer(head + r"\{", text[:end]):
        if found.start() < begin:
            continue
        depth, at = 1, found.end()
        while depth and at < end:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield found.start(), at


def _lines(path: Path, begin: int, end: int) -> Lines:
    text = bare(path)
    first, last = text.count("\n", 0, begin) + 1, text.count("\n", 0, end) + 1
    return Lines(str(path), frozenset(range(first, last + 1)))
