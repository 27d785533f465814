"""What the loops over steps have that none should: counted in the kernels for sm_90, without a GPU.

    python benchmarks/sass/step_loops.py [--if-changed] [--update] [--sources csrc] [--out benchmarks/results]

Of every kernel of csrc/cuda/teams and csrc/cuda/maps, in the machine code of the loop over steps in ``run``: divisions
by numbers known at run time only, loads and stores whose memory the compiler does not know, fences, local memory and,
in kernels of floats, arithmetic in doubles; and how many instructions it has. Kernels of continual EP have two such
loops, one where weights rest and one where they move; a grid's have the latter alone. A barrier of the whole grid has
fences and such a load of its own: they are a kind of their own, and no other is allowed any.

sass_loops.csv has a ceiling for each. Fails if a count is over its ceiling, and says where in the sources; fails, too,
if one is below, until --update lowers the ceiling. A loop may grow or shrink by a tenth of its instructions. --update
never raises a ceiling: to allow more, edit the table. With --if-changed nothing is compiled if the table was made from
the same files by the same compiler. --sources compares other kernels with the table, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import compiled
from compiled import cuda_resources
from disassembly import Instruction
from kernel import Kernel
from walk import Test

FILES = ("cuda/teams/kernels.cu", "cuda/maps/kernels.cu")
SCRIPTS = tuple(
    Path(__file__).resolve().with_name(f"{name}.py")
    for name in ("compiled", "disassembly", "flow", "kernel", "sources", "step_loops")
)
SHOWN_LINES = 4  # of the source, where most of a kind are
TABLE = "sass_loops.csv"
SLACK = {"instructions": 0.1}  # by which a count may differ from its ceiling

DIVIDES = re.compile(r"_(div|rem)_[su]\d+$")  # routines that the compiler calls


def divides(instruction: Instruction) -> bool:
    """One of its instructions: the conversion of the divisor, rounded up, of which a reciprocal is taken."""
    if instruction.name == "CALL":
        return bool(DIVIDES.search(instruction.callee))
    return instruction.name == "I2F" and instruction.opcode.endswith(".RP")


# Without those of a barrier of the whole grid.
FORBIDDEN: dict[str, Test] = {
    "divisions": divides,
    "generic loads": lambda instruction: instruction.name == "LD",
    "generic stores": lambda instruction: instruction.name == "ST",
    "fences": lambda instruction: instruction.name == "MEMBAR",
    "local memory": lambda instruction: instruction.name in ("LDL", "STL"),
    "doubles": lambda instruction: instruction.name in ("DADD", "DMUL", "DFMA", "DSETP"),
}
KINDS = (*FORBIDDEN, "fences of the grid's barrier", "instructions")


@dataclass(frozen=True)
class Ceiling:
    kernel: str
    loop: str
    kind: str
    ceiling: int


@dataclass(frozen=True)
class Found:
    """How many of a kind a kernel's loop has, and how many of them each line of its sources made."""

    count: int
    lines: Counter[str]

    def where(self) -> str:
        return ", ".join(f"{line} ({count})" for line, count in self.lines.most_common(SHOWN_LINES))


Key = tuple[str, str, str]  # kernel, loop, kind


def line_of(instruction: Instruction, csrc: Path) -> str:
    """The innermost line that is the project's own."""
    own = (frame for frame in instruction.chain if frame.file.startswith(f"{csrc}{os.sep}"))
    frame = next(own, instruction.chain[0])
    return f"{os.path.relpath(frame.file, csrc)}:{frame.line}"


def found_in(kernel: Kernel) -> dict[Key, Found]:
    """Of one kernel, in its loops over steps. What the compiler has moved out of them does not count."""
    barrier = kernel.lines("cuda/teams/team.cuh", "meet", "Grid").made
    found = {}
    for name, loop in kernel.step_loops().items():
        inside = kernel.graph.instructions_of(loop)
        of_kinds = {
            kind: [one for one in inside if test(one) and not barrier(one)]
            for kind, test in FORBIDDEN.items()
            if kind != "doubles" or kernel.name.startswith("float")
        }
        of_kinds["fences of the grid's barrier"] = [one for one in inside if FORBIDDEN["fences"](one) and barrier(one)]
        of_kinds["instructions"] = inside
        for kind, those in of_kinds.items():
            found[kernel.name, name, kind] = Found(len(those), Counter(line_of(one, kernel.csrc) for one in those))
    return found


def faults(found: Mapping[Key, Found], ceilings: Mapping[Key, int]) -> tuple[list[str], list[str]]:
    """What is over its ceiling, and what another table would put right, in words."""
    over, loose = [], []
    for (kernel, loop, kind), now in found.items():
        ceiling, slack = ceilings.get((kernel, loop, kind)), SLACK.get(kind, 0)
        who = f"{kernel}: {now.count} {kind} in the loop over steps in which {loop}"
        if ceiling is None:
            loose.append(f"{who}, for which {TABLE} has no ceiling")
        elif now.count > ceiling * (1 + slack):
            over.append(f"{who}, where {TABLE} allows {ceiling}; most are of {now.where()}")
        elif now.count < ceiling * (1 - slack):
            loose.append(f"{who}, fewer than the {ceiling} that {TABLE} allows: lower the ceiling")
    loose += [
        f"{kernel}: {TABLE} has a ceiling for {kind} where {loop}, which were not counted"
        for kernel, loop, kind in ceilings
        if (kernel, loop, kind) not in found
    ]
    return over, loose


def found_in_all(nvcc: Path, nvdisasm: Path, csrc: Path) -> dict[Key, Found]:
    """Of all kernels."""
    found: dict[Key, Found] = {}
    for file in FILES:
        for name, instructions in sorted(compiled.kernels(nvcc, nvdisasm, csrc / file).items()):
            found |= found_in(Kernel(name, instructions, csrc))
    return found


def ceilings_in(path: Path) -> dict[Key, int]:
    from ceprop_cuda.output.tables import read_rows

    rows = read_rows(path, Ceiling) if path.exists() else []
    return {(row.kernel, row.loop, row.kind): row.ceiling for row in rows}


def table(ceilings: Mapping[Key, int]) -> str:
    from ceprop_cuda.output.tables import markdown

    loops = dict.fromkeys((kernel, loop) for kernel, loop, _ in ceilings)
    lines = [["kernel", "loop in which", *KINDS]]
    lines += [[*loop, *(str(ceilings.get((*loop, kind), "")) for kind in KINDS)] for loop in loops]
    return markdown(lines)


def check(found: Mapping[Key, Found], path: Path, made_by: Mapping[str, str] | None, update: bool) -> None:
    """Exits with what is wrong; else writes the table, unless ``made_by`` is None."""
    print(table({key: now.count for key, now in found.items()}))
    if not update and not path.exists():
        sys.exit(f"there is no {path}: --update makes it")
    ceilings = ceilings_in(path)
    over, loose = faults(found, ceilings)
    if over or (loose and not update):
        hint = ["`python benchmarks/sass/step_loops.py --update` does so"] if not over and made_by is not None else []
        sys.exit("\n".join([*over, *loose, *hint]))
    if made_by is not None:
        rows = [
            Ceiling(*key, min(now.count, ceilings.get(key, now.count)) if update else ceilings[key])
            for key, now in found.items()
        ]
        cuda_resources.write_table(path, rows, made_by)
        print(f"{path} is written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--if-changed", action="store_true", help="compile nothing if the table in --out still holds")
    parser.add_argument("--update", action="store_true", help="lower ceilings to what was counted")
    parser.add_argument("--sources", type=Path, default=compiled.CSRC, metavar="csrc", help="whose kernels")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    csrc, path = args.sources.resolve(), args.out / TABLE
    is_own = csrc == compiled.CSRC
    if not is_own and (args.if_changed or args.update):
        parser.error("--if-changed and --update are of the sources that the table belongs to: leave out --sources")
    tools = compiled.tools()
    if tools is None:
        return
    made_by = cuda_resources.what_made(cuda_resources.version_of(tools[0]), SCRIPTS) if is_own else None
    held = cuda_resources.read_table(path, made_by, Ceiling) if args.if_changed and made_by else None
    if held:
        print(table({(row.kernel, row.loop, row.kind): row.ceiling for row in held}))
        print(f"as in {path}, which was made from the same files by the same compiler: nothing was compiled")
        return
    check(found_in_all(*tools, csrc), path, made_by, args.update)


if __name__ == "__main__":
    main()
