"""Run directories, which a kill at any moment leaves fit to resume."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from torch import Tensor

from .plots import curves
from .version import __version__


class Metrics(TypedDict):
    """Of one epoch; :meth:`ceprop_cuda.Trainer.fit` says what they are."""

    epoch: int
    train_error: float | None
    test_error: float | None
    train_loss: float
    seconds: float
    steps: list[float]


CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
CURVES = "curves.png"
SECONDS_BETWEEN_DRAWINGS = 10


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what ``write`` writes at ``path``: whoever reads it, or kills this, finds the old file or the new one.

    The unfinished file lies beside it as ``<name>.tmp``; the next write replaces one that a kill left there.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


class GeneratorState:
    """A DataLoader's generator as a part of the checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])


class RunDirectory:
    """The files of a run. The checkpoint holds all that the others do, and is always written first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._drawn = -math.inf

    def refuse_if_used(self) -> None:
        """Raise FileExistsError unless a new run may take this folder: there is no run yet, or one without a finished
        epoch, which there is no point in keeping."""
        used = next((name for name in (CHECKPOINT, METRICS, CONFIG) if (self.path / name).exists()), None)
        if used is None or (used == CHECKPOINT and self._holds_no_epoch()):
            return
        raise FileExistsError(
            f"{self.path} holds a run already ({used}): go on with it by resume=True (--resume), or name another folder"
        )

    def _holds_no_epoch(self) -> bool:
        try:
            checkpoint = self.checkpoint()
        except ValueError:  # damaged, but perhaps somebody's trained network
            return False
        return isinstance(checkpoint, dict) and checkpoint.get("history") == []

    def checkpoint(self) -> dict[str, Any]:
        """What :meth:`save` saved last, loaded to the CPU."""
        path = self.path / CHECKPOINT
        if not path.exists():
            raise FileNotFoundError(f"there is no run in {self.path}: no {CHECKPOINT}")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the unpickler stumble in any way
            raise ValueError(f"{path} cannot be read: {error}") from error

    def save(self, plan: Mapping[str, Any], history: Sequence[Metrics], parts: Mapping[str, Any]) -> None:
        """Bring all files up to date.

        Args:
            plan: "epochs", "config" and "rule", all JSON values.
            history: the metrics of the finished epochs.
            parts: everything with a state_dict, by its name in the checkpoint; None where there is no such part.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        state = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        checkpoint = {**plan, "history": list(history), "rng": torch.get_rng_state(), **state}
        write_atomically(self.path / CHECKPOINT, lambda file: torch.save(checkpoint, file))
        versions = {"ceprop_cuda": __version__, "torch": torch.__version__, "python": platform.python_version()}
        config = {**plan["config"], "rule": plan["rule"], "epochs": plan["epochs"], "versions": versions}
        described = json.dumps(config, indent=2)
        write_atomically(self.path / CONFIG, lambda file: file.write(described.encode() + b"\n"))
        lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
        write_atomically(self.path / METRICS, lambda file: file.write(lines.encode()))
        # A drawing takes longer than an epoch of a small network. That of no epoch loads matplotlib before training
        # begins: interrupts, which mostly hit training, have been seen to crash the process within that import.
        waited = time.monotonic() > self._drawn + SECONDS_BETWEEN_DRAWINGS
        if waited or len(history) in (0, 1, plan["epochs"]):
            image = curves(history)
            write_atomically(self.path / CURVES, lambda file: file.write(image))
            self._drawn = time.monotonic()


def read_checkpoint(out: str | Path) -> dict[str, Any]:
    """The checkpoint of the run directory ``out``, on the CPU: "epochs" (planned), "config", "rule" (as in
    config.json), "history" (as of :meth:`ceprop_cuda.Trainer.fit`), "network" (a state_dict), and what else a resumed
    run needs.

    Raises FileNotFoundError if there is none, ValueError if it is damaged.
    """
    return RunDirectory(Path(out)).checkpoint()


def restore(checkpoint: Mapping[str, Any], plan: Mapping[str, Any], parts: Mapping[str, Any]) -> list[Metrics]:
    """Give ``parts`` and torch's generator the states they had, and return the history; ValueError if they do not fit,
    before any of them is changed."""
    for part in ("config", "rule"):
        old, new = checkpoint.get(part, {}), plan[part]
        for key in [*new, *old]:  # another rule is told first by its name, then by the settings that it has or lacks
            if old.get(key) != new.get(key):
                raise ValueError(f"{part}[{key!r}] is {new.get(key)!r}, but the run to resume has {old.get(key)!r}")
    history: list[Metrics] = list(checkpoint["history"])
    if len(history) > plan["epochs"]:
        raise ValueError(f"epochs={plan['epochs']}, but the run to resume has finished {len(history)} already")
    for name, part in parts.items():
        if (part is None) != (checkpoint.get(name) is None):  # no such key: of a version without such parts
            had = "none" if part is not None else "one"
            raise ValueError(f"the {name} state is missing on one side: the run to resume has {had}")
    shapes, saved = (
        {name: tuple(p.shape) for name, p in state.items()}
        for state in (parts["network"].state_dict(), checkpoint["network"])
    )
    if shapes != saved:
        raise ValueError(f"the network has parameters {shapes}, but that of the run to resume has {saved}")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(checkpoint[name])
    torch.set_rng_state(checkpoint["rng"])
    return history
