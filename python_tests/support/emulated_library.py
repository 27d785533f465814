"""A library's convolutions on the CPU with our kernels under the emulation: one process that takes all calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import PIPE

from cuda_emulation.builds import compiled
from emulated_device import EmulatedDevice, Refused, compiled_kernels
from project import EMULATED_PROGRAMS
from torch.utils.cpp_extension import include_paths, library_paths


@dataclass
class Served(EmulatedDevice):
    """Hands all calls to one process, which ends where a kernel is refused."""

    process: subprocess.Popen[str] | None = None

    def _execute(self, given: Path, gave: Path) -> None:
        if self.process is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tensors are small
            self.process = subprocess.Popen(
                [str(self.program)], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{given} {gave}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            _, report = self.process.communicate()
            self.process = None
            raise Refused(report)


def builder(folder: Path) -> Callable[..., Path]:
    """Compiles one of the builds in ``folder``, of these sources or of others."""
    sequence = folder / "library_on_cpu.o"
    compiled(EMULATED_PROGRAMS / "library_on_cpu.cpp", sequence, "-O1", *(f"-I{path}" for path in include_paths()))
    libraries = [word for path in library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    others = [sequence, *libraries, "-ltorch_cpu", "-lc10"]

    @cache
    def build_program(name: str, sources: Path = EMULATED_PROGRAMS, folder: Path = folder) -> Path:
        return compiled_kernels(name, sources / "run_library.cpp", folder, others)

    return build_program
