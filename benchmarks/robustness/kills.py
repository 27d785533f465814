"""Kills `ceprop train` at random moments and resumes it, again and again.

    python benchmarks/robustness/kills.py --kills 100 --seed 0 [--out DIR]

Short runs on the bundled digits are killed by SIGKILL and resumed until they have finished; then new ones begin, until
there were so many kills. Whatever a kill leaves has to be fit to go on with, and every run has to end with the weights
and, seconds aside, the metrics of a run that nobody killed, bitwise. Epochs are so short that many kills hit a write.
Prints how many kills came when; exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ceprop_cuda.run_directory import read_checkpoint

# Continual EP, which moves the weights itself and draws signs; and EP with torch's SGD. Two batches are an epoch, which
# takes about as long as writing its files.
SETTINGS = {
    "c-ep": "--preset digits --nudging random_sign --batch 700 --steps 6 3 --epochs 150",
    "ep": "--preset ep-1h --data digits --batch 700 --steps 6 3 --epochs 100",
}
SHARE_OF_STARTS = 0.15  # of the kills come before a process trains
SHARE_OF_A_RUN = 0.25  # is trained at most until the next kill
LONGEST = 300  # seconds of a run that nobody kills


class Wrong(Exception):
    """What must not come of a kill."""


@dataclass
class Whole:
    """A run that nobody killed: how it ended, and how long it took."""

    ending: dict[str, Any]
    startup: float  # seconds until it trained
    total: float


def start(name: str, out: Path, resume: bool, log: Path) -> subprocess.Popen[bytes]:
    """``ceprop train`` in a process of its own, whose words go to ``log``."""
    words = ["--resume"] if resume else SETTINGS[name].split()
    command = [sys.executable, "-m", "ceprop_cuda", "train", *words, "--threads", "1", "--out", str(out)]
    with open(log, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"NO_COLOR": "1"})


def ending(out: Path) -> dict[str, Any]:
    """All that a run leaves, but for how long its epochs took."""
    checkpoint = read_checkpoint(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((out / "config.json").read_text())
    for metrics in (*lines, *checkpoint["history"]):
        del metrics["seconds"]
    return {"checkpoint": checkpoint, "metrics.jsonl": lines, "config.json": config}


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """The first place where nested dicts, lists and tensors are not bitwise the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return None if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((found for key in a if (found := difference(a[key], b[key], f"{where}[{key!r}]"))), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next((found for i in range(len(a)) if (found := difference(a[i], b[i], f"{where}[{i}]"))), None)
    return None if a == b else where


def kill_later(process: subprocess.Popen[bytes], out: Path, whole: Whole, draw: random.Random) -> None:
    """Send SIGKILL at a random moment, of the start or of training, unless the process ends before."""
    deadline = time.monotonic() + whole.startup * draw.random()
    if draw.random() >= SHARE_OF_STARTS:
        await_training(process, out)
        deadline = time.monotonic() + SHARE_OF_A_RUN * (whole.total - whole.startup) * draw.random()
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)  # Popen.wait looks at intervals of up to 0.05 s
    process.send_signal(signal.SIGKILL)


def await_training(process: subprocess.Popen[bytes], out: Path) -> None:
    """Return when ``process`` has written its checkpoint twice: after an epoch, whether or not it wrote one before."""
    for _ in range(2):
        before = written(out)
        while written(out) == before and process.poll() is None:
            time.sleep(0.002)


def written(out: Path) -> int | None:
    """When the run's checkpoint was written."""
    checkpoint = out / "checkpoint.pt"
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else None


def whole_run(name: str, folder: Path) -> Whole:
    out, log = folder / f"{name}-whole", folder / f"{name}-whole.log"
    began = time.monotonic()
    process = start(name, out, False, log)
    await_training(process, out)
    startup = time.monotonic() - began
    if process.wait(LONGEST) != 0:
        raise Wrong(f"a run that nobody killed failed: {log.read_text()}")
    return Whole(ending(out), startup, time.monotonic() - began)


def killed_run(name: str, whole: Whole, folder: Path, draw: random.Random, most: int, moments: Counter[str]) -> int:
    """One run, killed at most so many times; returns how often it was. Counts the moments of the kills."""
    out, log, kills = folder / "run", folder / "run.log", 0
    while True:
        resume = written(out) is not None
        process = start(name, out, resume, log)
        if kills < most:
            kill_later(process, out, whole, draw)
        if process.wait(LONGEST) == 0:
            break
        if process.returncode != -signal.SIGKILL:
            after = f"after kill {kills}, {'resumed' if resume else 'begun anew'}"
            raise Wrong(f"{name}: exit status {process.returncode} {after}: {log.read_text()}")
        kills += 1
        moments[moment(out)] += 1
    if (found := difference(ending(out), whole.ending)) is not None:
        raise Wrong(f"{name}: {found} is not that of a run that nobody killed, after {kills} kills")
    return kills


def moment(out: Path) -> str:
    """What a kill interrupted, as far as files tell."""
    if written(out) is None:
        return "before the first checkpoint"
    if list(out.glob("*.tmp")):
        return "within a write"
    history = read_checkpoint(out)["history"]
    metrics = out / "metrics.jsonl"
    lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    return "between two files" if lines != len(history) else "between two epochs, or within one"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the runs, kept (default: a temporary one)")
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="ceprop-kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    draw, moments = random.Random(arguments.seed), Counter[str]()
    wholes: dict[str, Whole] = {}
    kills = runs = 0
    try:
        while kills < arguments.kills:
            name = list(SETTINGS)[runs % len(SETTINGS)]
            if name not in wholes:
                wholes[name] = whole_run(name, folder)
            kills += killed_run(name, wholes[name], folder, draw, arguments.kills - kills, moments)
            shutil.rmtree(folder / "run")
            runs += 1
    except Wrong as wrong:
        print(f"{wrong}\nseed {arguments.seed}; what is left lies in {folder}")
        return 1
    for when, count in sorted(moments.items()):
        print(f"{count:8}  {when}")
    print(f"{kills} kills of {runs} runs, which all ended as if there had been none; seed {arguments.seed}")
    if arguments.out is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
