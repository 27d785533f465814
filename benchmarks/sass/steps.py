"""What the machine code of a step says of its time, without a GPU: instructions by kind, and simulated clocks.

    python benchmarks/sass/steps.py [--sources csrc] [--out benchmarks/results]

Compiles the kernels of dense networks (float, Exact) for sm_90, finds the parts of a step by the functions that they
come from, replays one turn of each on a model of a multiprocessor, and adds up what that makes of a step for a few
networks, as the library that is built here plans it; beside what cuda_steps.csv has measured on an H100 with the
kernels of the commit that it names. Prints Markdown tables; writes sass_parts.csv and sass_steps.csv, those of other
sources only if --out is given. See README.md for what the model knows and what not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import compiled
from account import CASES, Account, StepRow, measurements, planned
from compiled import cuda_resources
from kinds import counted
from parts import Kernel, Part
from program import begun

IN_GRID, IN_CLUSTER = "float, Exact, InGrid", "float, Exact, InCluster"
FILES = {"cuda/kernels.cu": (IN_GRID, IN_CLUSTER)}
SLICES = 10  # of a product of 20 samples
TURNS = 16  # simulated one after the other


@dataclass(frozen=True)
class PartRow:
    """One turn of a loop. Instructions are counted, clocks simulated."""

    kernel: str
    part: str
    does: str
    items: int  # a thread, in a turn
    instructions: int
    multiply_adds: int
    floats: int
    doubles: int
    conversions: int
    shared: int
    other_memory: int
    constants: int
    control: int
    integers: int  # and moves
    unwanted: int  # of other cases, which the way found could not do without
    clocks_1_warp: float  # of a turn, alone on a multiprocessor
    clocks_8_warps: float  # of a turn of each of them, at once


def row_of(kernel: str, part: Part) -> PartRow:
    turns = 1 if part.name == "epilogue" else TURNS  # a tile has one turn of it
    counts = counted(instruction for instruction, _ in part.steps)
    return PartRow(
        kernel,
        part.name,
        part.does,
        part.items,
        len(part.steps),
        **counts,
        unwanted=part.unwanted,
        clocks_1_warp=part.clocks(1, turns),
        clocks_8_warps=part.clocks(8, turns),
    )


def markdown_of_parts(rows: Sequence[PartRow]) -> str:
    from ceprop_cuda.tables import markdown

    lines = [["kernel", "part", "items", "instructions", "FFMA", "integers, moves", "loads, stores", "conversions"]]
    lines[0] += ["clocks an item, 1 warp", "8 warps"]
    for row in rows:
        memory = row.shared + row.other_memory + row.constants
        cells = [row.items, row.instructions, row.multiply_adds, row.integers, memory, row.conversions]
        clocks = [f"{clocks / row.items:.0f}" for clocks in (row.clocks_1_warp, row.clocks_8_warps)]
        lines.append([row.kernel, row.part, *map(str, cells), *clocks])
    return markdown(lines)


def markdown_of_steps(rows: Sequence[StepRow], commit: str) -> str:
    from ceprop_cuda.tables import markdown

    lines = [["case", "exchange", "multiply", "staging", "epilogue", "barrier (measured)", "simulated sum"]]
    lines[0].append(f"measured, kernels of {commit}")
    for row in rows:
        us = [row.multiply_us, row.staging_us, row.epilogue_us, row.barrier_us, row.simulated_us]
        cells = ["not known" if value is None else f"{value:.2f}" for value in us]
        measured = "" if row.measured_us is None else f"{row.measured_us:.2f} ({row.measured_exchange})"
        lines.append([row.case, row.exchange, *cells, measured])
    return markdown(lines)


def main() -> None:
    program = begun(__doc__)
    if program is None:
        return
    tools, csrc, out = (program.nvcc, program.nvdisasm), program.csrc, program.out
    kernels = {
        name: Kernel(name, instructions, csrc)
        for file, names in FILES.items()
        for name, instructions in compiled.kernels(*tools, csrc / file, names.__contains__).items()
    }
    accounts = {"grid": Account(kernels[IN_GRID]), "cluster": Account(kernels[IN_CLUSTER])}
    found = [(account.kernel.name, part) for account in accounts.values() for part in account.parts(SLICES)]
    parts = [row_of(kernel, part) for kernel, part in found]
    measured, commit = measurements(compiled.RESULTS / "cuda_steps.csv")
    plans = [planned(case) for case in CASES]
    steps = [
        accounts[plan["exchange"]].step(case, plan, measured.get(case.name, {}))
        for case, plan in zip(CASES, plans, strict=True)
        if plan["exchange"] in accounts  # another kernel is not modelled
    ]

    print(f"Parts of a step: instructions counted, clocks simulated.\n\n{markdown_of_parts(parts)}\n")
    print(f"Steps, in us: simulated but for the barrier.\n\n{markdown_of_steps(steps, commit)}\n")
    if out:
        made_by = program.made_by(
            {"measured": f"measured_us, on an H100, with the kernels of {commit}; barrier_us, too"}
        )
        cuda_resources.write_table(out / "sass_parts.csv", parts, made_by)
        cuda_resources.write_table(out / "sass_steps.csv", steps, made_by)
        print(f"{out / 'sass_parts.csv'} and {out / 'sass_steps.csv'} are written")


if __name__ == "__main__":
    main()
