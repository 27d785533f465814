"""PyTorch's operators on the CPU with our kernels under the emulation: one process that takes all calls."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import PIPE

from cuda_emulation.builds import COMPILE
from emulated_device import EmulatedDevice, Refused, compiled_kernels
from kept_programs import object_of
from project import EMULATED_PROGRAMS
from torch.utils.cpp_extension import include_paths, library_paths


@dataclass
class Served(EmulatedDevice):
    """Hands all calls to one process, which ends where a kernel is refused."""

    precision: str = "exact"
    process: subprocess.Popen[str] | None = None

    def _execute(self, given: Path, gave: Path) -> None:
        if self.process is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tensors are small
            self.process = subprocess.Popen(
                [str(self.program), self.precision], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{given} {gave}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            _, report = self.process.communicate()
            self.process = None
            raise Refused(report)


@cache
def library_program(
    name: str, programs: Path = EMULATED_PROGRAMS, copy: Path | None = None, flags: tuple[str, ...] = ()
) -> Path:
    """One of the builds, of these programs or of those in a ``copy`` of the project."""
    includes = [f"-I{path}" for path in include_paths()]
    sequence = object_of(EMULATED_PROGRAMS / "library_on_cpu.cpp", *COMPILE, "-O1", *includes)
    libraries = [word for path in library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    others = (sequence, *libraries, "-ltorch_cpu", "-lc10")
    return compiled_kernels(name, programs / "run_library.cpp", others, copy, flags)
