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
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


def find_toolkit() -> tuple[Path, str] | str:
    """The folder of a CUDA toolkit that fits torch, and its version; or why there is none."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    nvcc = shutil.which("nvcc")
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates += [real_home(nvcc)] if nvcc is not None else []
    candidates.append(Path("/usr/local/cuda"))
    reason = "no CUDA toolkit was found (nvcc on PATH, CUDA_HOME or /usr/local/cuda)"
    reasons = []
    for home in candidates:
        if not (home / "bin" / "nvcc").exists():
            continue
        version = re.search(r"release (\d+\.\d+)", output_of(home / "bin" / "nvcc", "--version"))
        if version is None:
            reasons.append(f"{home / 'bin' / 'nvcc'} does not run")
        elif version[1].split(".")[0] == torch.version.cuda.split(".")[0]:
            return home, version[1]
        else:
            reasons.append(f"the CUDA toolkit {home} is {version[1]}, torch was built with {torch.version.cuda}")
    return "; ".join(reasons) or reason


def output_of(*command: object) -> str:
    """What a command prints; nothing if it cannot be run."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def real_home(nvcc: str) -> Path:
    """The toolkit that ``nvcc`` belongs to, even if it is a script that runs the real one elsewhere."""
    top = re.search(r"^#\$ TOP=(.+)$", output_of(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
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
        print(f"ceprop_cuda: building without CUDA: {found}")
        return None
    home, version = found
    print(f"ceprop_cuda: building for the CPU and for CUDA {version} ({home})")
    return home


toolkit = toolkit_to_use()
if toolkit is not None:
    os.environ["CUDA_HOME"] = str(toolkit)
    known = output_of(toolkit / "bin" / "nvcc", "--list-gpu-arch").split()
    usable = [a for a in ARCHITECTURES if not known or f"compute_{a.replace('.', '')}" in known]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(usable) + "+PTX")

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402  (reads CUDA_HOME)


def extension(with_cuda: bool):
    """One extension of all sources; kernels pick their instruction set at run time, so no flag names a machine."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.*"))
    sources = [str(f) for f in files if f.suffix in (".cpp", ".cu") and (with_cuda or "cuda" not in f.parts)]
    headers = [str(f) for f in files if f.suffix in (".h", ".cuh")]
    debug = os.environ.get("DEBUG", "0") == "1"
    cxx = ["-g", "-O0"] if debug else ["-O3", "-g0"]
    cxx += ["-std=c++20", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
    kind = CUDAExtension if with_cuda else CppExtension
    return kind(
        "ceprop_cuda._C",
        sources,
        depends=headers,
        include_dirs=[str(path) for path in torch_cuda_headers()] if with_cuda else [],
        define_macros=[("CEPROP_WITH_CUDA", None)] if with_cuda else [],
        extra_compile_args={"cxx": cxx, "nvcc": ["-std=c++20", "-O3", "-lineinfo", "--threads=4"]},
        extra_link_args=["-fopenmp"],
    )


def torch_cuda_headers() -> list[Path]:
    """Where torch's wheels keep the headers of CUDA's libraries, which a toolkit may lack."""
    folders = (Path(folder) / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "include" for folder in sys.path)
    return [folder for folder in folders if folder.is_dir()]


setup(ext_modules=[extension(toolkit is not None)], cmdclass={"build_ext": BuildExtension})
