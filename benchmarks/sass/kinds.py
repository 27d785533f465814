"""Instructions by what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from disassembly import Instruction

# By the beginning of the opcode; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "multiply_adds": ("FFMA",),
    "floats": ("FADD", "FMUL", "FMNMX", "FSETP", "FSEL", "FCHK", "MUFU"),
    "doubles": ("DADD", "DMUL", "DFMA", "DSETP"),
    "conversions": ("I2F", "F2I", "F2F", "I2I"),
    "shared": ("LDS", "STS"),  # loads and stores
    "other_memory": ("LDG.", "LDGSTS", "STG", "LD.", "ST.", "LDL", "STL", "ATOM", "RED"),  # LDGSTS among them
    "constants": ("LDC", "ULDC"),
    "control": ("B", "CALL", "RET", "EXIT", "WARPSYNC", "YIELD", "NOP", "DEPBAR", "LDGDEPBAR", "MEMBAR"),
    "integers": ("",),  # and moves
}


def kind_of(opcode: str) -> str:
    return next(kind for kind, beginnings in KINDS.items() if opcode.startswith(beginnings))


def counted(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter({kind: 0 for kind in KINDS} | Counter(kind_of(i.opcode) for i in instructions))
