"""A few kills by the script in benchmarks/robustness, and whether it tells runs apart."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT
from project import ROOT

SCRIPT = ROOT / "benchmarks" / "robustness" / "kills.py"


def test_a_few_kills(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--seed", "0", "--out", str(tmp_path / "runs")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills of " in done.stdout


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"rng": torch.tensor([1, 3])}, "['rng']"),
        ({"network": {"weight": torch.ones(2, dtype=torch.float64)}}, "['network']['weight']"),
        ({"history": [{"epoch": 1}, {"epoch": 3}]}, "['history'][1]['epoch']"),
        ({"history": [{"epoch": 1}]}, "['history']"),
        ({"more": 1}, ""),
    ],
)
def test_what_differs_is_found(change: dict[str, Any], place: str) -> None:
    difference = runpy.run_path(str(SCRIPT))["difference"]
    run = {"rng": torch.tensor([1, 2]), "network": {"weight": torch.ones(2)}, "history": [{"epoch": 1}, {"epoch": 2}]}
    assert difference(run, dict(run)) is None
    assert difference(run, run | change) == place
