"""Kernels as nvcc makes them for sm_90, with the lines that they were made from; needs no GPU."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import disassembly
from disassembly import Instruction

BENCHMARKS = Path(__file__).resolve().parent.parent
sys.path.append(str(BENCHMARKS))  # of the script that has the compiler's and the tables' affairs

import cuda_resources  # noqa: E402

CSRC = BENCHMARKS.parent / "csrc"
RESULTS = BENCHMARKS / "results"
ARCHITECTURE = 90
SCRIPTS = tuple(sorted(Path(__file__).resolve().parent.glob("*.py")))  # on which tables depend


def tools() -> tuple[Path, Path] | None:
    """nvcc and nvdisasm; None, which is said, if there is no nvcc and CEPROP_CUDA=0 asks for no kernels."""
    nvcc = cuda_resources.compiler()
    if nvcc is None:
        return None
    nvdisasm = cuda_resources.find_tool(nvcc, "nvdisasm")
    if nvdisasm is None:
        sys.exit("no nvdisasm beside nvcc, on PATH or in the triton package: kernels cannot be disassembled")
    return nvcc, nvdisasm


def kernels(
    nvcc: Path, nvdisasm: Path, source: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, list[Instruction]]:
    """The instructions of a file's kernels, by names such as "float, Team4, InGrid"; of those that are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.cubin"
        flags = ("-std=c++20", "-O3", "-cubin", f"-arch=sm_{ARCHITECTURE}", "-lineinfo")
        cuda_resources.run(nvcc, *flags, "-o", binary, source.resolve())
        text = cuda_resources.run(nvdisasm, "-hex", "-gi", "-c", binary)
    found = disassembly.read(text.splitlines(), lambda symbol: wanted(cuda_resources.readable(symbol)))
    return {cuda_resources.readable(symbol): instructions for symbol, instructions in found.items()}


def asked(description: str | None) -> tuple[Path, Path | None]:
    """Of a program's arguments: whose kernels, and in which folder a table of them is to lie; None: in none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=CSRC, metavar="csrc", help="whose kernels")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, for the sources that lie beside it")
    args = parser.parse_args()
    csrc = args.sources.resolve()
    return csrc, args.out or (RESULTS if csrc == CSRC else None)


def write_table(path: Path, rows: Sequence[Any], nvcc: Path, csrc: Path) -> None:
    made_by = cuda_resources.what_made(cuda_resources.version_of(nvcc), SCRIPTS, csrc / "cuda")
    cuda_resources.write_table(path, rows, made_by)
    print(f"{path} is written")
