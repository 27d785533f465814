"""Calls of the command line, and what they leave behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ceprop_cuda
from ceprop_cuda import cli
from ceprop_cuda.run_directory import read_checkpoint

PACKAGE = str(Path(ceprop_cuda.__file__).parents[1])
ENVIRONMENT = os.environ | {"PYTHONPATH": PACKAGE}
QUICK = ("train", "--backend", "reference", "--threads", "1")


def ceprop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ceprop_cuda", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def config_of(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "config.json").read_text())


def metrics_of(run: str) -> list[dict[str, Any]]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return without_seconds(json.loads(line) for line in lines)


def kept_of(run: str) -> list[dict[str, Any]]:
    """Of the epochs from which a resumed run goes on: an interrupt may come when metrics.jsonl lacks the last."""
    return without_seconds(read_checkpoint(run)["history"])


def without_seconds(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in metrics.items() if key != "seconds"} for metrics in history]


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, status: int = 2) -> None:
    capsys.readouterr()
    assert cli.main(arguments) == status
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("ceprop: ")
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def lines_of(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in Path(path).read_text().splitlines() if not line.startswith("#")))
