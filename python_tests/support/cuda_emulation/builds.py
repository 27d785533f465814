"""Builds a program of kernels under the CUDA emulation, in the three ways that README.md describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kept_programs import object_of, program_of

HERE = Path(__file__).parent
# Of DWARF 5, binutils 2.40 takes a program's first header for its source: addr2line would name the wrong file.
COMPILE = ["-std=c++20", "-g1", "-gdwarf-4"]

# What is added to compile the runtime, and to compile a program.
BUILDS = {
    "plain": ([], []),
    "asan": (["-fsanitize=address"], ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
    "race": ([], ["-fsanitize=thread", "-fno-optimize-sibling-calls", "--param=tsan-instrument-func-entry-exit=0"]),
}


def runtime(*flags: str) -> Path:
    return object_of(HERE / "runtime.cpp", *COMPILE, "-O2", *flags)


def compiled(name: str, source: Path, *flags: object, copy: Path | None = None) -> Path:
    _, of_program = BUILDS[name]
    header = ("-include", HERE / "cuda_emulation.h")
    return object_of(source, *COMPILE, "-O1", *header, *of_program, *flags, copy=copy)


def build(name: str, source: Path, *flags: object, others: Sequence[object] = (), copy: Path | None = None) -> Path:
    """``source``, which may lie in a ``copy`` of the project, as a program, linked with ``others``: objects and
    libraries."""
    of_runtime, of_program = BUILDS[name]
    # Without libtsan, whose place the runtime takes.
    libraries = of_program if name == "asan" else []
    objects = (compiled(name, source, *flags, copy=copy), runtime(*of_runtime))
    return program_of(f"{source.stem}_{name}", *objects, *others, *libraries)
