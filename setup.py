"""Builds the compiled library ``ceprop_cuda._C``; everything else about the package is in pyproject.toml.

The CPU half always builds. CUDA is built when a toolkit is found and torch is a CUDA build of the same major version,
never by whether a GPU is visible; ``CEPROP_CUDA=0`` leaves it out, ``CEPROP_CUDA=1`` fails if it cannot be built.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
except ImportError:
    sys.exit(
        "ceprop_cuda is built against the torch that it will run with, and there is none here. Install torch, then "
        "build without isolation:\n"
        "    pip install torch setuptools wheel ninja pybind11\n"
        "    pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def find_toolkit() -> tuple[Path, str] | str:
    """The folder of the CUDA toolkit and its version, or why there is none that fits torch."""
    nvcc = shutil.which("nvcc")
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc is not None:
        candidates.append(real_home(nvcc))
    candidates.append(Path("/usr/local/cuda"))
    home = next((path for path in candidates if (path / "bin" / "nvcc").exists()), None)
    if home is None:
        return "no CUDA toolkit was found (nvcc on PATH, CUDA_HOME or /usr/local/cuda)"
    version = re.search(r"release (\d+\.\d+)", subprocess.check_output([home / "bin" / "nvcc", "--version"], text=True))
    if version is None:
        return f"{home / 'bin' / 'nvcc'} does not tell its version"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if version[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the CUDA toolkit {home} is {version[1]}, torch {torch.__version__} was built with {torch.version.cuda}"
    return home, version[1]


def real_home(nvcc: str) -> Path:
    """The toolkit that ``nvcc`` belongs to, even if it is a script that runs the real one elsewhere."""
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent


def toolkit_to_use() -> Path | None:
    """The toolkit to build with, or None; says what was decided, and stops if CUDA was demanded in vain."""
    wish = os.environ.get("CEPROP_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"CEPROP_CUDA must be 0, 1 or unset, got {wish!r}")
    if wish == "0":
        print("ceprop_cuda: building for the CPU only, as CEPROP_CUDA=0 asks")
        return None
    found = find_toolkit()
    if isinstance(found, str):
        if wish == "1":
            sys.exit(f"CEPROP_CUDA=1, but {found}")
        print(f"ceprop_cuda: building without the CUDA kernels: {found}")
        return None
    home, version = found
    print(f"ceprop_cuda: building for the CPU and for CUDA {version} ({home})")
    return home


toolkit = toolkit_to_use()
if toolkit is not None:
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402  (reads CUDA_HOME)


def extension(with_cuda: bool):
    """One extension of all sources; kernels pick their instruction set at run time, so no flag names a machine."""
    folders = ["csrc", "csrc/cpu"] + ["csrc/cuda"] * with_cuda
    files = sorted(path for folder in folders for path in (ROOT / folder).iterdir())
    sources = [str(path.relative_to(ROOT)) for path in files if path.suffix in (".cpp", ".cu")]
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
    debug = os.environ.get("DEBUG", "0") == "1"
    cxx = ["-g", "-O0"] if debug else ["-O3", "-g0"]
    cxx += ["-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
    kind = CUDAExtension if with_cuda else CppExtension
    return kind(
        "ceprop_cuda._C",
        sources,
        depends=headers,
        include_dirs=[str(path) for path in torch_cuda_headers()] if with_cuda else [],
        define_macros=[("CEPROP_WITH_CUDA", None)] if with_cuda else [],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-lineinfo"]},
        extra_link_args=["-fopenmp"],
    )


def torch_cuda_headers() -> list[Path]:
    """Where torch's wheels keep the headers of CUDA's libraries, which a toolkit may lack."""
    folders = (Path(folder) / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "include" for folder in sys.path)
    return [folder for folder in folders if folder.is_dir()]


setup(ext_modules=[extension(toolkit is not None)], cmdclass={"build_ext": BuildExtension})
