"""examples/quickstart.py does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "quickstart.py"


def test_from_data_to_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "figures"], capture_output=True, text=True, env=os.environ, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    angle, error = (float(number) for number in re.findall(r"^\w+: ([\d.]+) ", done.stdout, re.MULTILINE))
    assert angle < 10
    assert error < 8
    for name in ("ep_follows_bptt.png", "training.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
