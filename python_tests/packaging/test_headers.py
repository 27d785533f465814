"""Every header of csrc includes what it needs: it compiles as the only one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_programs import locked
from project import ROOT, SUPPORT
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

CSRC = ROOT / "csrc"
HEADERS = sorted(path for path in CSRC.rglob("*.*h") if path.suffix in (".h", ".cuh"))
# A toolkit's headers, and those of its libraries that torch's wheels bring.
TOOLKITS = [folder for folder in Path("/usr/local").glob("cuda*/include") if (folder / "crt").exists()]
CUDA = [*TOOLKITS[:1], *(path for folder in sys.path for path in Path(folder).glob("nvidia/cu*/include"))]
COMPILE = ["g++", "-std=c++20", "-fopenmp"]


def name_of(header: Path) -> str:
    return str(header.relative_to(CSRC))


def text_of(header: Path) -> str:
    """Of the header and of ours that it includes."""
    text = header.read_text()
    own = [line.split('"')[1] for line in text.splitlines() if line.startswith('#include "')]
    return text + "".join(text_of(header.parent / name) for name in own)


WITH_TORCH = [header for header in HEADERS if re.search("<(ATen|torch|c10)/", text_of(header))]


@pytest.fixture(scope="module")
def compiled_ahead(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The flags to include a header that was compiled once for all workers: it takes longer than what follows it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers of this run share

    def ahead(name: str, include: str, *flags: str) -> list[str]:
        header = folder / f"{name}.h"
        with locked(str(header)):
            if not header.exists():
                part = folder / f"{name}.part.h"
                part.write_text(f"#include {include}\n")
                made = [*COMPILE, *flags, "-x", "c++-header", str(part), "-o", f"{header}.gch"]
                subprocess.run(made, check=True)
                part.rename(header)
        return [*flags, "-include", str(header)]

    return ahead


def compiles(header: Path, folder: Path, *flags: str) -> None:
    source = folder / "alone.cpp"
    source.write_text(f'#include "{header}"\n')
    done = subprocess.run([*COMPILE, *flags, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


@pytest.mark.parametrize("header", WITH_TORCH, ids=name_of)
def test_a_header_with_torch_compiles_alone(
    header: Path, compiled_ahead: Callable[..., list[str]], tmp_path: Path
) -> None:
    if re.search("<c10/cuda|<ATen/cuda|cuda_runtime", text_of(header)) and not TOOLKITS:
        pytest.skip("needs a CUDA toolkit's headers")
    folders = [f"-I{folder}" for folder in (*include_paths(), *CUDA)]
    compiles(header, tmp_path, *compiled_ahead("torch", "<ATen/ATen.h>", *folders))


@pytest.mark.parametrize("header", sorted(set(HEADERS) - set(WITH_TORCH)), ids=name_of)
def test_a_header_compiles_alone(header: Path, compiled_ahead: Callable[..., list[str]], tmp_path: Path) -> None:
    """Those that include CUDA's headers under the emulation, which stands for them."""
    runtime = tmp_path / "cuda_runtime_api.h"
    runtime.write_text("using cudaError_t = int;\nusing cudaStream_t = void*;\n")
    if header.name == "launch.h":
        pytest.skip("launches by CUDA's own functions")
    is_cuda = "cuda" in header.relative_to(CSRC).parts
    emulation = compiled_ahead("emulation", f'"{SUPPORT}/cuda_emulation/cuda_emulation.h"') if is_cuda else []
    compiles(header, tmp_path, *emulation, f"-I{tmp_path}")


def included(header: Path) -> set[Path]:
    """The headers of ours that come with it, itself among them."""
    names = re.findall(r'^#include "(.+)"', header.read_text(), re.MULTILINE)
    return {header}.union(*(included((header.parent / name).resolve()) for name in names))


def test_kernels_of_one_instruction_set_share_no_code_with_others() -> None:
    """What is shared is compiled before a set is turned on, or forced inline: else the linker could give a machine code
    of a set that it has not."""
    before, after = (included(CSRC / "cpu" / f"kernels_{name}.h") for name in ("prelude", "impl"))
    shared = sorted(header for header in after - before if header.parent == CSRC / "model")
    assert shared
    for header in shared:
        functions = re.findall(
            r"^(?: {2})?(?:\w[\w:<>&*, ]* )?\w+\([^;{}]*\)(?: const)? \{", header.read_text(), re.MULTILINE
        )
        assert functions
        for function in functions:
            assert function.strip().startswith(("CEPROP_INLINE", "CEPROP_CALLS", "if ", "for ")), (
                header.name,
                function,
            )
