"""Builds a program of kernels under the CUDA emulation, in the three ways that README.md describes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
COMPILE = ["g++", "-std=c++20", "-g1"]

# What is added to compile the runtime, and to compile a program.
BUILDS = {
    "plain": ([], []),
    "asan": (["-fsanitize=address"], ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
    "race": ([], ["-fsanitize=thread", "-fno-optimize-sibling-calls", "--param=tsan-instrument-func-entry-exit=0"]),
}


def run(*command: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout)


def compiled(source: Path, object_file: Path, *flags: object) -> Path:
    done = run(*COMPILE, *flags, "-c", source, "-o", object_file)
    assert done.returncode == 0, done.stderr
    return object_file


def linked(program: Path, *words: object) -> Path:
    done = run("g++", *words, "-o", program)
    assert done.returncode == 0, done.stderr
    return program


def runtime(folder: Path, *flags: str) -> Path:
    """The runtime's object file in ``folder``, where it stays for other programs."""
    file = folder / f"runtime{''.join(flags)}.o"
    return file if file.exists() else compiled(HERE / "runtime.cpp", file, "-O2", *flags)


def build(name: str, source: Path, folder: Path, *flags: object, others: Sequence[object] = ()) -> Path:
    """``source`` as a program in ``folder``, linked with ``others``: objects and libraries."""
    of_runtime, of_program = BUILDS[name]
    object_file = folder / f"{source.stem}_{name}.o"
    compiled(source, object_file, "-O1", "-include", HERE / "cuda_emulation.h", *of_program, *flags)
    # Without libtsan, whose place the runtime takes.
    libraries = of_program if name == "asan" else []
    return linked(folder / f"{source.stem}_{name}", object_file, runtime(folder, *of_runtime), *others, *libraries)
