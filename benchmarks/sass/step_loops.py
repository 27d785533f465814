"""What the loops over steps have that none should: counted in the kernels for sm_90, without a GPU.

    python benchmarks/sass/step_loops.py [--if-changed] [--update] [--sources csrc] [--out benchmarks/results]

Of every kernel, in the machine code of the loop over steps in ``run``: divisions by numbers known at run time only,
loads and stores whose memory the compiler does not know, fences, local memory and, in kernels of floats, arithmetic in
doubles. sass_loops.csv has a ceiling for each. Fails if a count is over its ceiling, and says where in the sources;
fails, too, if one is below, until --update lowers the ceiling. --update never raises one: to allow more, edit the
table. With --if-changed nothing is compiled if the table was made from the same files by the same compiler. --sources
compares other kernels with the table, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import compiled
import flow
import sources
from compiled import cuda_resources
from disassembly import Instruction
from sources import Lines

# By the file of kernels where its loop over steps stands, and a call that no other loop has.
STEP_LOOPS = {
    "cuda/kernels.cu": ("cuda/run_op.cuh", "may_stop"),
    "cuda/teams/kernels.cu": ("cuda/teams/relaxation.cuh", "step<false>"),
}
WITHOUT_LOOP = ("cuda/aten/kernels.cu",)  # there the host goes from step to step
SCRIPTS = tuple(
    Path(__file__).resolve().with_name(f"{name}.py")
    for name in ("compiled", "disassembly", "flow", "sources", "step_loops")
)
SHOWN_LINES = 4  # of the source, where most of a kind are
# Of the loop's instructions: some stand outside, as they are for warps whose threads have parted. With many shuffles
# there are many of those.
MOST, LEAST = 0.9, 0.85
TABLE = "sass_loops.csv"

DIVIDES = re.compile(r"_(div|rem)_[su]\d+$")  # routines that the compiler calls


def divides(instruction: Instruction) -> bool:
    """One of its instructions: the conversion of the divisor, rounded up, of which a reciprocal is taken."""
    if instruction.name == "CALL":
        return bool(DIVIDES.search(instruction.callee))
    return instruction.name == "I2F" and instruction.opcode.endswith(".RP")


KINDS: dict[str, Callable[[Instruction], bool]] = {
    "divisions": divides,
    "generic loads": lambda instruction: instruction.name == "LD",
    "generic stores": lambda instruction: instruction.name == "ST",
    "fences": lambda instruction: instruction.name == "MEMBAR",
    "local memory": lambda instruction: instruction.name in ("LDL", "STL"),
    "doubles": lambda instruction: instruction.name in ("DADD", "DMUL", "DFMA", "DSETP"),
}


@dataclass(frozen=True)
class Ceiling:
    kernel: str
    kind: str
    ceiling: int


@dataclass(frozen=True)
class Found:
    """How many of a kind a kernel's loop has, and how many of them each line of its sources made."""

    count: int
    lines: Counter[str]

    def where(self) -> str:
        return ", ".join(f"{line} ({count})" for line, count in self.lines.most_common(SHOWN_LINES))


Key = tuple[str, str]  # kernel, kind


def line_of(instruction: Instruction, csrc: Path) -> str:
    """The innermost line that is the project's own."""
    own = (frame for frame in instruction.chain if frame.file.startswith(f"{csrc}{os.sep}"))
    frame = next(own, instruction.chain[0])
    return f"{os.path.relpath(frame.file, csrc)}:{frame.line}"


def found_in(kernel: str, instructions: Sequence[Instruction], body: Lines, csrc: Path) -> dict[Key, Found]:
    """Of one kernel, in the smallest loop of its machine code that has most of what the loop's body was made to: what
    the compiler has moved out of it does not count. ValueError if all loops have little of it."""
    graph = flow.graph_of(instructions)
    loop = graph.smallest_loop(body.made, MOST) or graph.fullest_loop(body.made, LEAST)
    if loop is None:
        raise ValueError(f"{kernel}: no loop has {LEAST:.0%} of what comes from the loop over steps in {body.file}")
    inside = graph.instructions_of(loop)
    found = {}
    for kind, test in KINDS.items():
        if kind != "doubles" or kernel.startswith("float"):
            lines = Counter(line_of(instruction, csrc) for instruction in inside if test(instruction))
            found[kernel, kind] = Found(lines.total(), lines)
    return found


def faults(found: Mapping[Key, Found], ceilings: Mapping[Key, int]) -> tuple[list[str], list[str]]:
    """What is over its ceiling, and what another table would put right, in words."""
    over, loose = [], []
    for (kernel, kind), now in found.items():
        ceiling = ceilings.get((kernel, kind))
        who = f"{kernel}: {now.count} {kind} in the loop over steps"
        if ceiling is None:
            loose.append(f"{who}, for which {TABLE} has no ceiling")
        elif now.count > ceiling:
            over.append(f"{who}, where {TABLE} allows {ceiling}; most are of {now.where()}")
        elif now.count < ceiling:
            loose.append(f"{who}, fewer than the {ceiling} that {TABLE} allows: lower the ceiling")
    loose += [
        f"{kernel}: {TABLE} has a ceiling for {kind}, which were not counted"
        for kernel, kind in ceilings
        if (kernel, kind) not in found
    ]
    return over, loose


def found_in_all(nvcc: Path, nvdisasm: Path, csrc: Path) -> dict[Key, Found]:
    """Of all kernels of a step."""
    found: dict[Key, Found] = {}
    for file in sorted(path.relative_to(csrc).as_posix() for path in csrc.glob("cuda/**/kernels.cu")):
        if file in WITHOUT_LOOP:
            continue
        if file not in STEP_LOOPS:
            sys.exit(f"{file} is neither in STEP_LOOPS nor in WITHOUT_LOOP of {Path(__file__).name}")
        where, call = STEP_LOOPS[file]
        body = sources.step_loop(csrc / where, call)
        for kernel, instructions in sorted(compiled.kernels(nvcc, nvdisasm, csrc / file).items()):
            found |= found_in(kernel, instructions, body, csrc)
    return found


def ceilings_in(path: Path) -> dict[Key, int]:
    from ceprop_cuda.tables import read_rows

    rows = read_rows(path, Ceiling) if path.exists() else []
    return {(row.kernel, row.kind): row.ceiling for row in rows}


def table(ceilings: Mapping[Key, int]) -> str:
    from ceprop_cuda.tables import markdown

    kernels = dict.fromkeys(kernel for kernel, _ in ceilings)
    lines = [["in the loop over steps", *KINDS]]
    lines += [[kernel, *(str(ceilings.get((kernel, kind), "")) for kind in KINDS)] for kernel in kernels]
    return markdown(lines)


def check(found: Mapping[Key, Found], path: Path, made_by: Mapping[str, str] | None, update: bool) -> None:
    """Exits with what is wrong; else writes the table, unless ``made_by`` is None."""
    print(table({key: now.count for key, now in found.items()}))
    if not update and not path.exists():
        sys.exit(f"there is no {path}: --update makes it")
    over, loose = faults(found, ceilings_in(path))
    if over or (loose and not update):
        hint = ["`python benchmarks/sass/step_loops.py --update` does so"] if not over and made_by is not None else []
        sys.exit("\n".join([*over, *loose, *hint]))
    if made_by is not None:
        rows = [Ceiling(kernel, kind, now.count) for (kernel, kind), now in found.items()]
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
        print(table({(row.kernel, row.kind): row.ceiling for row in held}))
        print(f"as in {path}, which was made from the same files by the same compiler: nothing was compiled")
        return
    check(found_in_all(*tools, csrc), path, made_by, args.update)


if __name__ == "__main__":
    main()
