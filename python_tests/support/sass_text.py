"""Machine code written by hand, as nvdisasm prints it."""

from __future__ import annotations

import disassembly
from disassembly import NONE, Instruction

KERNEL = "_ZN6ceprop4cuda5teams8run_teamIfLi4ENS1_6InGridEvEEvNS1_7ProblemIT_EE"


def line(
    address: int,
    text: str,
    stall: int = 1,
    sets: int = NONE,
    frees: int = NONE,
    waits: int = 0,
    table: str = "",
) -> str:
    """An instruction as nvdisasm prints it, in two words."""
    control = stall << 41 | sets << 46 | frees << 49 | waits << 52
    first = f"        /*{address:04x}*/  {text:40} {table} ;   /* 0x{address:016x} */\n"
    return f"{first}{' ' * 60}/* 0x{control:016x} */\n"


def made_at(*frames: tuple[str, int]) -> str:
    """The lines above an instruction that name where it comes from, innermost first."""
    named = [f'File "{file}", line {number}' for file, number in frames]
    inlined = [" inlined at ".join(pair) for pair in zip(named, [n[5:] for n in named[1:]], strict=False)]
    return "".join(f"\t//## {text}\n" for text in [*inlined, named[-1]])


def function(body: str, symbol: str = KERNEL) -> str:
    return f"//--------------------- .text.{symbol} ------\n{symbol}:\n.text.{symbol}:\n{body}"


def read(body: str) -> list[Instruction]:
    return disassembly.read(function(body).splitlines(keepends=True))[KERNEL]


# A loop of two ways, in a loop: 0x10 to 0x70 around 0x20 to 0x60.
LOOPS = (
    line(0x00, "MOV R0, RZ")
    + ".L_x_1:\n"
    + line(0x10, "IADD3 R1, R1, 0x1, RZ")
    + ".L_x_2:\n"
    + line(0x20, "@P0 BRA `(.L_x_3)")
    + made_at(("/s/rare.h", 7))
    + line(0x30, "LDS R2, [R1]")
    + line(0x40, "@P1 LDS R3, [R1]")
    + made_at(("/s/usual.h", 3))
    + ".L_x_3:\n"
    + line(0x50, "FFMA R4, R2, R3, R4")
    + line(0x60, "@!P2 BRA `(.L_x_2)")
    + line(0x70, "BRA P3, `(.L_x_1)")
    + line(0x80, "BRA.DIV UR4, `(.L_x_1)")
    + line(0x90, "EXIT")
)
