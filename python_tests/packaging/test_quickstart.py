"""examples/quickstart.py does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from command_line import ENVIRONMENT
from project import ROOT

SCRIPT = ROOT / "examples" / "quickstart.py"


def output_of(argument: Path | str, folder: Path) -> str:
    """What the script prints with an argument, started in a folder."""
    command = [sys.executable, SCRIPT, argument]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_data_to_figures(tmp_path: Path) -> None:
    shown = output_of(tmp_path / "figures", tmp_path)
    angle, error = (float(number) for number in re.findall(r"^\w+: ([\d.]+) ", shown, re.MULTILINE))
    assert angle < 10
    assert error < 8
    for name in ("ep_follows_bptt.png", "training.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_help_is_no_folder(tmp_path: Path) -> None:
    assert "From data to figures" in output_of("--help", tmp_path)
    assert not any(tmp_path.iterdir())
