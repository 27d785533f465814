"""Training runs in processes of their own, each an ordinary ``ceprop train`` in an ordinary run directory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..environment import commit, cpu_model
from ..output.files import write_atomically
from ..presets import PRESETS
from ..run_directory import CHECKPOINT, CONFIG, METRICS, Metrics, read_json_object, read_metrics
from .rows import ROWS, Row

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 10  # that a process may take once it was told
NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Ended(KeyboardInterrupt):
    """By a signal, once all processes that were started have ended."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(f"{NAMES[signal.Signals(number)]}; finished epochs are kept, the same command goes on")


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
        return read_metrics(path)[: self.epochs] if path.exists() else []

    def is_complete(self) -> bool:
        return len(self.history()) == self.epochs

    def config(self) -> dict[str, Any]:
        """As config.json has it; runs from before there were gates had none."""
        return {"gate": "none"} | read_json_object(self.folder / CONFIG)

    def refuse_another(self) -> None:
        """ValueError if the folder holds a run of something else."""
        if not (self.folder / CONFIG).exists():
            return
        config = self.config()
        wanted = {"preset": self.row.preset, "data": self.data, "seed": self.seed, "bptt": self.row.bptt}
        wanted |= {"angle": self.row.angle} if self.row.angle is not None else {}
        preset = PRESETS[self.row.preset]
        wanted |= {"schedule": self.row.schedule or preset.schedule, "nudging": self.row.nudging or preset.nudging}
        wanted |= {} if self.row.bptt else {"gate": preset.gate or "none"}
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
        return {"commits": [], "cpus": []} | (read_json_object(self.note) if self.note.exists() else {})

    def sign(self) -> None:
        """Note this commit and processor as some that the run was made by."""
        made_by = self.made_by()
        for key, value in (("commits", commit()), ("cpus", cpu_model())):
            if value not in made_by[key]:
                made_by[key].append(value)
        write_atomically(self.note, json.dumps(made_by).encode())


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
            config = read_json_object(path)
            missing = [key for key in ("seed", "epochs", "data") if key not in config]
            if missing:
                raise ValueError(f"{path} was not made by `ceprop train`: it has no {missing[0]!r}")
            runs.append(Run(name, row, config["seed"], config["epochs"], path.parent, config["data"]))
    return runs


def train(
    runs: Sequence[Run], jobs: int, options: Sequence[str], progress: bool, finished: Callable[[], object]
) -> dict[Run, str]:
    """Train those of ``runs`` that are not complete, ``jobs`` at a time, and return how those that failed ended.

    Args:
        options: more options of ``ceprop train``.
        finished: called whenever a run has ended.

    Raises Ended by an interrupt, SIGTERM or SIGHUP, once all processes, which are told, have ended; complete epochs are
    kept.
    """
    waiting = deque(run for run in runs if not run.is_complete())
    active: dict[Run, subprocess.Popen] = {}
    failed: dict[Run, str] = {}
    done = sum(len(run.history()) for run in runs)
    bar = tqdm(total=sum(run.epochs for run in runs), initial=done, unit="epoch", disable=not progress)
    with bar, _heeded_signals() as signals:
        try:
            while (waiting or active) and not signals:
                while waiting and len(active) < jobs:
                    run = waiting.popleft()
                    active[run] = _start(run, options)
                bar.set_description(", ".join(f"{run.name} {run.seed}" for run in active))
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for run in [run for run, process in active.items() if process.poll() is not None]:
                    status = active.pop(run).returncode
                    if status != 0:
                        failed[run] = _reason(run, status)
                    finished()
                bar.update(sum(len(run.history()) for run in runs) - bar.n)
        finally:
            _end(active.values(), signals)
    if signals:
        raise Ended(signals[0])
    return failed


@contextmanager
def _heeded_signals() -> Iterator[list[int]]:
    """The signals to end that have come so far. Raised as exceptions they might come between the start of a process
    and the note of it, and leave it behind."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield came
        return
    # What the caller ignores stays ignored, as under nohup.
    heeded = [number for number in NAMES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: Iterable[subprocess.Popen], signals: Sequence[int]) -> None:
    """Tell them, and kill those that take long, or all if one more signal comes; a kill loses no finished epoch."""
    told = len(signals)
    for process in processes:
        # A process that was started in the background ignores interrupts, and what it starts does, too.
        process.send_signal(signal.SIGTERM if signals and signals[0] != signal.SIGINT else signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_END
    for process in processes:
        while process.poll() is None:
            if time.monotonic() > deadline or len(signals) > told:
                process.kill()
            time.sleep(0.02)


def _reason(run: Run, status: int) -> str:
    """How a run failed: its last line, if it had time for one."""
    lines = run.log.read_text(errors="replace").split("\n") if run.log.exists() else []
    last = next(filter(None, map(str.strip, reversed(lines))), "")
    return last if status > 0 and last else f"it ended by signal {-status}" if status < 0 else f"exit status {status}"


def _start(run: Run, options: Sequence[str]) -> subprocess.Popen:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.sign()
    with run.log.open("a") as log:
        # In a session of its own: an interrupt from the keyboard comes to it once, through this process.
        command = [sys.executable, "-m", "ceprop_cuda", *run.command(options)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
