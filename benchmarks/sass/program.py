"""What the programs of this folder that write tables share: what they are told, and what their tables were made by."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import compiled
from compiled import cuda_resources


@dataclass(frozen=True)
class Program:
    csrc: Path
    out: Path | None  # None: no tables
    nvcc: Path
    nvdisasm: Path

    def made_by(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The lines above a table's columns."""
        version = cuda_resources.version_of(self.nvcc)
        return {**cuda_resources.what_made(version, compiled.SCRIPTS, self.csrc / "cuda"), **(more or {})}


def begun(doc: str | None) -> Program | None:
    """What the command line asks for. None if there is no nvcc and CEPROP_CUDA=0 asks for no kernels; that is said."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=compiled.CSRC, metavar="csrc", help="whose kernels")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, for the sources that lie beside it")
    args = parser.parse_args()
    csrc = args.sources.resolve()
    tools = compiled.tools()
    return Program(csrc, args.out or (compiled.RESULTS if csrc == compiled.CSRC else None), *tools) if tools else None
