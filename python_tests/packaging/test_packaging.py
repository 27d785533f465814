"""The sdist holds the sources, a wheel built from it the library, and the wheel works in an environment of its own."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from project import ROOT, SUPPORT


def run(*command: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    words, environment = [str(word) for word in command], {**os.environ, **(env or {})}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, env={"CEPROP_CUDA": "0"})
    return next(folder.glob("*.tar.gz"))


def test_sdist_and_wheel(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = run("git", "ls-files", "csrc", "ceprop_cuda") if (ROOT / ".git").exists() else ""
    wanted = {*tracked.split(), "csrc/library.cpp", "csrc/cpu/dense/relaxation.h", "ceprop_cuda/data/digits/digits.npz"}
    assert wanted <= held
    assert not [name for name in held if name.endswith(".so")]

    # From the sdist, not from here: what it lacks would not be found. Without optimisation it compiles in a third. What
    # has not changed since it was last compiled is kept.
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sdist]
    compiler = tmp_path / "kept_g++"
    compiler.write_text(f'#!/bin/sh\nexec {sys.executable} {SUPPORT / "kept_programs.py"} "$@"\n')
    compiler.chmod(0o755)
    run(*pip, env={"CEPROP_CUDA": "0", "DEBUG": "1", "CXX": str(compiler)}, cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if name.startswith("ceprop_cuda/_C") and name.endswith(".so")]
    package_files = {"py.typed", "bench/command.py", "reproduce/command.py", "cli/main.py", "theorem/command.py"}
    package_files |= {"data/digits/digits.npz", "data/digits/LICENSE.txt"}
    assert {f"ceprop_cuda/{name}" for name in package_files} <= set(names)
    assert not [name for name in names if name.startswith(("csrc/", "python_tests/"))]

    # A clean environment that sees torch where it is installed here, but no editable installation of this folder:
    # folders named in a .pth file bring no .pth files of their own.
    home = tmp_path / "clean"
    venv.create(home, with_pip=False)
    packages = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    code = "import ceprop_cuda as c; print(c.__file__); print(c.mlp(4, 3, 2).relax(__import__('torch').rand(2, 4), 3))"
    printed = run(home / "bin" / "python", "-c", code, cwd=tmp_path)
    assert printed.startswith(str(packages))


SETUP_ON_A_MACHINE_WITHOUT_TOOLKIT = """
import os, pathlib, runpy, shutil, sys

home, exists = os.environ.get("CUDA_HOME", ""), pathlib.Path.exists

def seen(path, **options):
    is_hidden = path.as_posix().endswith("bin/nvcc") and path.parent.parent != pathlib.Path(home)
    return not is_hidden and exists(path, **options)

pathlib.Path.exists = seen
shutil.which = lambda *_args, **_options: None
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py", run_name="__main__")
"""


def build_decision(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What setup.py says and does before it builds anything, if there is no CUDA toolkit but that of ``CUDA_HOME``."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CUDA") and key != "CEPROP_CUDA"}
    command = [sys.executable, "-c", SETUP_ON_A_MACHINE_WITHOUT_TOOLKIT]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**clean, **env})


def fake_toolkit(folder: Path, version: str) -> Path:
    """A folder that looks like a CUDA toolkit of this version."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {version}, V{version}.0"\n')
    nvcc.chmod(0o755)
    return folder


def test_cuda_off() -> None:
    done = build_decision({"CEPROP_CUDA": "0"})
    assert done.returncode == 0 and "building for the CPU only, as CEPROP_CUDA=0 asks" in done.stdout


def test_cuda_wish_must_be_known() -> None:
    done = build_decision({"CEPROP_CUDA": "yes"})
    assert done.returncode == 1 and "CEPROP_CUDA must be 0, 1 or unset, got 'yes'" in done.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is no CUDA build")
def test_cuda_is_built_for_a_toolkit_of_torchs_major_version(tmp_path: Path) -> None:
    assert torch.version.cuda is not None
    major = torch.version.cuda.split(".")[0]
    home = fake_toolkit(tmp_path / "toolkit", f"{major}.9")
    done = build_decision({"CUDA_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    assert f"building for the CPU and for CUDA {major}.9 ({home})" in done.stdout


def test_cuda_of_another_major_version_is_left_out_or_refused(tmp_path: Path) -> None:
    home = fake_toolkit(tmp_path / "toolkit", "9.2")
    done = build_decision({"CUDA_HOME": str(home)})
    assert done.returncode == 0 and "building without CUDA: " in done.stdout
    done = build_decision({"CUDA_HOME": str(home), "CEPROP_CUDA": "1"})
    assert done.returncode == 1
    reason = f"the CUDA toolkit {home} is 9.2" if torch.version.cuda else "is not a CUDA build"
    assert done.stderr.startswith("CEPROP_CUDA=1, but ") and reason in done.stderr


def test_no_toolkit(tmp_path: Path) -> None:
    reason = "no CUDA toolkit was found" if torch.version.cuda else f"torch {torch.__version__} is not a CUDA build"
    for env in ({}, {"CUDA_HOME": str(tmp_path)}):
        done = build_decision(env)
        assert done.returncode == 0, done.stderr
        assert f"building without CUDA: {reason}" in done.stdout
        done = build_decision({**env, "CEPROP_CUDA": "1"})
        assert done.returncode == 1 and done.stderr.startswith(f"CEPROP_CUDA=1, but {reason}")
