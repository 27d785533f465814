"""Paths as people write them, options, seeds, and processes without stderr, a backend or a compiled library."""

from __future__ import annotations

import io
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, PACKAGE
from training_runs import FILES, contents, fit, samples, started

from ceprop_cuda import cli
from ceprop_cuda.data import Batches, load
from ceprop_cuda.run_directory import read_checkpoint


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", PACKAGE)


# ---------------------------------------------------------------------------------------------------------------
# Paths and options


def test_the_home_folder_is_meant_wherever_a_path_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--epochs", "1", "--threads", "1", "--out", "~/a", "--data-dir", "~/data"]) == 0
    assert read_checkpoint("~/a")["config"]["data_dir"] == str(tmp_path / "home" / "data")
    assert cli.main(["train", "--resume", "--epochs", "2", "--threads", "1", "--out", "~/a"]) == 0
    assert cli.main(["eval", "--run", "~/a"]) == 0
    fit(started("ep"), "~/b", epochs=1)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=f"mnist is not in {tmp_path}/home/data/MNIST"):
        load("mnist", "~/data")
    assert cli.main(["reproduce", "--rows", "digits", "--seeds", "1", "--epochs", "1", "--out", "~/c"]) == 0
    theorem = ["theorem", "--case", "toy", "--steps", "5", "2", "--out", "~/d"]
    assert cli.main(theorem) == 0
    assert sorted(path.name for path in (tmp_path / "home").glob("[!.]*")) == ["a", "b", "c", "d"]
    assert not Path("~").exists()
    capsys.readouterr()


@pytest.mark.parametrize("path", ["", " ", "~nobody-of-this-name/a"])
def test_a_path_that_names_no_folder_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["train", "--out", path],
        ["train", "--data-dir", path],
        ["eval", "--run", path],
        ["theorem", "--case", "toy", "--out", path],
        ["reproduce", "--rows", "digits", "--out", path],
        ["bench", "--out", path],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        assert ended.value.code == 2
        assert "DIR " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^out "):
        fit(started("ep"), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^data_dir "):
        load("mnist", path)
    with pytest.raises(ValueError, match=r"^out "):
        read_checkpoint(path)
    with pytest.raises(TypeError, match="out must be the path of a folder, got 3"):
        fit(started("ep"), 3)  # type: ignore[arg-type]
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vers"],
        ["train", "--epoc", "1"],
        ["train", "--data-d", "x"],
        ["eval", "--run", "a", "--data", "mnist"],
        ["theorem", "--cas", "toy"],
        ["reproduce", "--row", "digits"],
        ["bench", "--qui"],
    ],
)
def test_options_are_not_abbreviated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    capsys.readouterr()
    assert os.listdir() == []


def test_seeds_are_whole_numbers_of_any_kind(capsys: pytest.CaptureFixture[str]) -> None:
    def order(seed: Any) -> list[list[int]]:
        return [y.tolist() for _, y in Batches(torch.arange(9.0), torch.arange(9), np.int64(4), True, seed)]

    assert order(np.int64(3)) == order(np.uint8(3)) == order(3) != order(4)
    for seed in (1.5, "3", True, None, 2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="seed must be an int in"):
            order(seed)
    assert cli.main(["train", "--out", "a", "--seed", str(2**64)]) == 2
    assert "--seed must be an int in [-2**63, 2**64), got 18446744073709551616" in capsys.readouterr().err
    assert not Path("a").exists()


def test_a_limit_of_file_sizes_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ceprop_cuda", "train", "--epochs", "1", "--out", "a"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ceprop: a/checkpoint.pt cannot be written: it would be larger than the largest file")
    assert "Traceback" not in ended.stderr
    assert contents(tmp_path / "a") == {}


# ---------------------------------------------------------------------------------------------------------------
# Streams


def shell(command: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m ceprop_cuda {command}"
    return subprocess.run(["bash", "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_the_command_line_needs_no_stderr(stream: str, tmp_path: Path) -> None:
    assert shell(f"eval --run nowhere {stream}").returncode == 2
    if stream == "2>&-":
        assert shell(f"train --epochs 1 --threads 1 --out a {stream}").returncode == 0
        assert sorted(contents(tmp_path / "a")) == FILES


@pytest.mark.parametrize("closed", [True, False])
def test_training_needs_no_stderr(closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """False: there is None."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("ceprop_cuda")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    for progress in (None, True):
        trainer = started("ep")
        trainer.fit([samples()], 1, out=tmp_path / str(progress), progress=progress)
    assert cli.main(["eval", "--run", "nowhere"]) == 2


# ---------------------------------------------------------------------------------------------------------------
# What matplotlib and the loader of modules see

BACKEND = """
import os, sys
from ceprop_cuda.run_directory import curves
assert curves([]).startswith(b"\\x89PNG")
assert os.environ["MPLBACKEND"] == {backend!r}
import matplotlib
print(matplotlib.rcParams._get("backend"))
"""


@pytest.mark.parametrize("backend", ["nonsense", "svg"])
def test_figures_need_no_backend(backend: str, tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"MPLBACKEND": backend}
    program = [sys.executable, "-c", BACKEND.format(backend=backend)]
    drawn = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert (drawn.stdout.strip() == backend) == (backend != "nonsense")  # for pyplot, if it is used later
    if backend == "nonsense":
        command = [sys.executable, "-m", "ceprop_cuda", "train", "--epochs", "1", "--out", "a"]
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
        assert sorted(contents(tmp_path / "a")) == FILES


def test_sources_without_a_library_say_that_they_shadow_the_installed_package(tmp_path: Path) -> None:
    shutil.copytree(Path(PACKAGE, "ceprop_cuda"), tmp_path / "ceprop_cuda", ignore=shutil.ignore_patterns("*.so"))
    ended = subprocess.run([sys.executable, "-c", "import ceprop_cuda"], capture_output=True, text=True, cwd=tmp_path)
    last = ended.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: {tmp_path}/ceprop_cuda has no compiled library: it shadows the installed ceprop_cuda, if there "
        f"is one, so leave {tmp_path}, or build here with `pip install --no-build-isolation -e .`"
    )
