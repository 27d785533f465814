"""Training runs in processes of their own, each an ordinary ``ceprop train`` in an ordinary run directory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..bench.report import commit, cpu_model
from ..presets import PRESETS
from ..run_directory import CHECKPOINT, CONFIG, METRICS, Metrics, write_atomically
from .rows import ROWS, Row

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Run:
    """One row with one seed, and where it lies."""

    name: str  # of the row
    row: Row
    seed: int
    epochs: int
    folder: Path
    data: str

    def history(self) -> list[Metrics]:
        """The metrics of the finished epochs, of at most ``epochs``."""
        path = self.folder / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines[: self.epochs]]

    def is_complete(self) -> bool:
        return len(self.history()) == self.epochs

    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / CONFIG).read_text())

    def refuse_another(self) -> None:
        """ValueError if the folder holds a run of something else."""
        if not (self.folder / CONFIG).exists():
            return
        config = self.config()
        wanted = {"preset": self.row.preset, "data": self.data, "seed": self.seed, "bptt": self.row.bptt}
        wanted |= {"angle": self.row.angle} if self.row.angle is not None else {}
        preset = PRESETS[self.row.preset]
        wanted |= {"schedule": self.row.schedule or preset.schedule, "nudging": self.row.nudging or preset.nudging}
        for key, value in wanted.items():
            if config.get(key) != value:
                raise ValueError(
                    f"{self.folder} holds a run with {key} {config.get(key)!r}, wanted is {value!r}: name another --out"
                )

    def command(self, options: Sequence[str]) -> list[str]:
        """The arguments of ``ceprop`` that begin this run, or go on with it."""
        resume = ["--resume"] if (self.folder / CHECKPOINT).exists() else []
        numbers = ["--data", self.data, "--seed", str(self.seed), "--epochs", str(self.epochs)]
        return ["train", *self.row.options(), *numbers, "--out", str(self.folder), *resume, *options]

    @property
    def log(self) -> Path:
        """What the process writes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def note(self) -> Path:
        """Where :func:`made_by` is kept."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def made_by(self) -> dict[str, list[str]]:
        """By which commits and on which processors the run was made, in the order of its parts."""
        return json.loads(self.note.read_text()) if self.note.exists() else {"commits": [], "cpus": []}

    def sign(self) -> None:
        """Note this commit and processor as some that the run was made by."""
        made_by = self.made_by()
        for key, value in (("commits", commit()), ("cpus", cpu_model())):
            if value not in made_by[key]:
                made_by[key].append(value)
        write_atomically(self.note, lambda file: file.write(json.dumps(made_by).encode()))


def planned(out: Path, rows: Mapping[str, Row], seeds: int, epochs: int | None, data: str | None) -> list[Run]:
    """The runs of these rows with seeds 0, 1, ...; ``epochs`` and ``data`` None: the presets'."""
    runs = []
    for name, row in rows.items():
        preset = PRESETS[row.preset]
        for seed in range(seeds):
            folder = out / name / f"seed-{seed}"
            runs.append(Run(name, row, seed, epochs or preset.epochs, folder, data or preset.data))
    return runs


def found(out: Path) -> list[Run]:
    """All runs that lie in ``out``, as long as they were planned to be."""
    runs = []
    for name, row in ROWS.items():
        for path in sorted(out.glob(f"{name}/seed-*/{CONFIG}")):
            config = json.loads(path.read_text())
            runs.append(Run(name, row, config["seed"], config["epochs"], path.parent, config["data"]))
    return runs


def train(
    runs: Sequence[Run], jobs: int, options: Sequence[str], progress: bool, finished: Callable[[], object]
) -> dict[Run, str]:
    """Train those of ``runs`` that are not complete, ``jobs`` at a time, and return how those that failed ended.

    Args:
        options: more options of ``ceprop train``.
        finished: called whenever a run has ended.

    Raises KeyboardInterrupt once all processes, which are told, have ended; complete epochs are kept.
    """
    waiting = deque(run for run in runs if not run.is_complete())
    active: dict[Run, subprocess.Popen] = {}
    failed: dict[Run, str] = {}
    done = sum(len(run.history()) for run in runs)
    with tqdm(total=sum(run.epochs for run in runs), initial=done, unit="epoch", disable=not progress) as bar:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    run = waiting.popleft()
                    active[run] = _start(run, options)
                bar.set_description(", ".join(f"{run.name} {run.seed}" for run in active))
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for run in [run for run, process in active.items() if process.poll() is not None]:
                    if active.pop(run).returncode != 0:
                        failed[run] = run.log.read_text().strip().splitlines()[-1]
                    finished()
                bar.update(sum(len(run.history()) for run in runs) - bar.n)
        finally:
            for process in active.values():
                process.send_signal(signal.SIGINT)
            for process in active.values():
                process.wait()
    return failed


def _start(run: Run, options: Sequence[str]) -> subprocess.Popen:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.sign()
    with run.log.open("a") as log:
        # In a session of its own: an interrupt from the keyboard comes to it once, through this process.
        command = [sys.executable, "-m", "ceprop_cuda", *run.command(options)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
