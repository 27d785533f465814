"""The sdist holds the sources, a wheel built from it the library, and the wheel works in an environment of its own."""

from __future__ import annotations

import json
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

    # From the sdist, not from here: what it lacks would not be found. Without optimisation it compiles in a third, and
    # without words for a debugger in less. What has not changed since it was last compiled is kept.
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sdist]
    compiler = tmp_path / "kept_g++"
    compiler.write_text(f'#!/bin/sh\nexec {sys.executable} {SUPPORT / "kept_programs.py"} "$@" -g0\n')
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
    printed = run(home / "bin" / "python", "-E", "-c", code, cwd=tmp_path)
    assert printed.startswith(str(packages))


# Runs setup.py up to where it builds, in a process for each environment, where there is no CUDA toolkit but that of
# CUDA_HOME. The processes are forked when torch, which takes seconds, is imported. Prints how each ended.
SETUP_ON_A_MACHINE_WITHOUT_TOOLKIT = """
import json, os, pathlib, runpy, shutil, sys
import torch

home, exists = "", pathlib.Path.exists

def seen(path, **options):
    is_hidden = path.as_posix().endswith("bin/nvcc") and path.parent.parent != pathlib.Path(home)
    return not is_hidden and exists(path, **options)

pathlib.Path.exists = seen
shutil.which = lambda *_args, **_options: None
assert "torch.utils.cpp_extension" not in sys.modules  # which reads CUDA_HOME
folder = pathlib.Path(sys.argv[1])
environments = json.loads((folder / "environments").read_text())
sys.argv = ["setup.py", "--version"]
for name, environment in environments.items():
    child = os.fork()
    if child == 0:
        for descriptor in (1, 2):
            os.dup2(os.open(folder / f"{name}.{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.update(environment)
        home = environment.get("CUDA_HOME", "")
        runpy.run_path("setup.py", run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Decisions = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def toolkits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that look like CUDA toolkits, and one that does not."""
    folder = tmp_path_factory.mktemp("toolkits")
    for name, version in (("fitting", f"{(torch.version.cuda or '13').split('.')[0]}.9"), ("old", "9.2")):
        nvcc = folder / name / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {version}, V{version}.0"\n')
        nvcc.chmod(0o755)
    return {name: folder / name for name in ("fitting", "old", "nowhere")}


@pytest.fixture(scope="module")
def decisions(toolkits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Decisions:
    """What setup.py says and does before it builds anything, if there is no CUDA toolkit but that of ``CUDA_HOME``."""
    environments = {"off": {"CEPROP_CUDA": "0"}, "unknown": {"CEPROP_CUDA": "yes"}}
    homes = {"nothing": {}, **{name: {"CUDA_HOME": str(home)} for name, home in toolkits.items()}}
    for name, environment in homes.items():
        environments |= {name: environment, f"{name} demanded": {**environment, "CEPROP_CUDA": "1"}}
    folder = tmp_path_factory.mktemp("decisions")
    (folder / "environments").write_text(json.dumps(environments))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CUDA") and key != "CEPROP_CUDA"}
    command = [sys.executable, "-c", SETUP_ON_A_MACHINE_WITHOUT_TOOLKIT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)
    assert done.returncode == 0, done.stderr
    return {
        name: subprocess.CompletedProcess(
            environment, int(status), *((folder / f"{name}.{descriptor}").read_text() for descriptor in (1, 2))
        )
        for (name, environment), status in zip(environments.items(), done.stdout.split(), strict=True)
    }


def test_cuda_off(decisions: Decisions) -> None:
    done = decisions["off"]
    assert done.returncode == 0 and "building for the CPU only, as CEPROP_CUDA=0 asks" in done.stdout


def test_cuda_wish_must_be_known(decisions: Decisions) -> None:
    done = decisions["unknown"]
    assert done.returncode == 1 and "CEPROP_CUDA must be 0, 1 or unset, got 'yes'" in done.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is no CUDA build")
@pytest.mark.parametrize("name", ["fitting", "fitting demanded"])
def test_cuda_is_built_for_a_toolkit_of_torchs_major_version(
    decisions: Decisions, toolkits: dict[str, Path], name: str
) -> None:
    assert torch.version.cuda is not None
    done = decisions[name]
    assert done.returncode == 0, done.stderr
    major, home = torch.version.cuda.split(".")[0], toolkits["fitting"]
    assert f"building for the CPU and for CUDA {major}.9 ({home})" in done.stdout


def test_cuda_of_another_major_version_is_left_out_or_refused(decisions: Decisions, toolkits: dict[str, Path]) -> None:
    done = decisions["old"]
    assert done.returncode == 0 and "building without CUDA: " in done.stdout
    done = decisions["old demanded"]
    assert done.returncode == 1
    reason = f"the CUDA toolkit {toolkits['old']} is 9.2" if torch.version.cuda else "is not a CUDA build"
    assert done.stderr.startswith("CEPROP_CUDA=1, but ") and reason in done.stderr


@pytest.mark.parametrize("name", ["nothing", "nowhere"])
def test_no_toolkit(decisions: Decisions, name: str) -> None:
    reason = "no CUDA toolkit was found" if torch.version.cuda else f"torch {torch.__version__} is not a CUDA build"
    done = decisions[name]
    assert done.returncode == 0, done.stderr
    assert f"building without CUDA: {reason}" in done.stdout
    done = decisions[f"{name} demanded"]
    assert done.returncode == 1 and done.stderr.startswith(f"CEPROP_CUDA=1, but {reason}")
