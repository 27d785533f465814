"""Run directories, which a kill at any moment leaves fit to resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict
from zlib import crc32

import numpy as np

from ..arguments.checks import folder_path, shown
from ..output.figures import save_figure
from ..output.files import append, lock, read, remove_unfinished, write_atomically
from .checkpoint import Recorded, packed, refuse_what_cannot_be_kept, restore, unpacked, versions
from .figure import curves


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
RESERVED = ("rule", "epochs", "versions")  # names in config.json
SECONDS_BETWEEN_DRAWINGS = 10


class RunDirectory:
    """The files of a run. The checkpoint is always written first, and decides: metrics.jsonl grows after it by the
    epochs that the checkpoint still holds itself, config.json and the figure can be made anew from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._drawn = -math.inf
        self._recorded = Recorded()  # what this object has written of metrics.jsonl
        self._described: bytes | None = None  # what it has found or written in config.json
        self._is_locked = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder, which is made if need be, to this process and object; BlockingIOError if it is taken."""
        if self._is_locked:
            yield
            return
        with lock(self.path):
            self._is_locked = True
            try:
                for name in (CHECKPOINT, METRICS, CONFIG, CURVES):
                    remove_unfinished(self.path / name)
                yield
            finally:
                self._is_locked = False

    # -----------------------------------------------------------------------------------------------------------
    # Beginning

    def begin(self, plan: Mapping[str, Any], parts: Mapping[str, Any], resume: bool) -> list[Metrics]:
        """The metrics of the epochs that are done already: none of a new run, or, to ``resume``, those of the run that
        is here, which ``parts`` and torch's generator go on from. Arguments as of :meth:`save`.

        Raises FileNotFoundError, FileExistsError or ValueError if there is no such run, another run, or one that does
        not fit, TypeError if a part cannot be saved; nothing was changed.
        """
        refuse_what_cannot_be_kept(parts)
        history: list[Metrics] = []
        if resume:
            checkpoint = self.checkpoint()
            self._refuse_edits(checkpoint)
            restore(checkpoint, plan, parts)
            history = checkpoint["history"]
        else:
            self._refuse_if_used()
        self.save(plan, history, parts)
        return history

    def refuse_if_none(self) -> None:
        """FileNotFoundError if there is no checkpoint."""
        if not os.path.lexists(self.path / CHECKPOINT):
            raise FileNotFoundError(f"there is no run in {self.path}: no {CHECKPOINT}")

    def _refuse_if_used(self) -> None:
        """Raise FileExistsError unless a new run may take this folder: there is no run yet, or one without a finished
        epoch, which there is no point in keeping."""
        used = next((name for name in (CHECKPOINT, METRICS, CONFIG) if os.path.lexists(self.path / name)), None)
        if used is None or (used == CHECKPOINT and self._holds_no_epoch()):
            return
        raise FileExistsError(
            f"{self.path} holds a run already ({used}): go on with it by resume=True (--resume), or name another folder"
        )

    def _holds_no_epoch(self) -> bool:
        try:
            return not self.checkpoint()["history"]
        except (ValueError, OSError):  # damaged, but perhaps somebody's trained network
            return False

    def _refuse_edits(self, checkpoint: Mapping[str, Any]) -> None:
        """ValueError if config.json says something else than the run, so that no wish is passed over in silence."""
        found = self._config()
        if found is None:
            return
        stated = _flat(found)
        own = _flat(_description(checkpoint, checkpoint.get("versions", found.get("versions"))))
        for name in [*stated, *own]:
            if stated.get(name) != own.get(name):
                raise ValueError(
                    f"{self.path / CONFIG} has {name} {stated.get(name)!r}, but the run has {own.get(name)!r}: an edit "
                    "there changes no run; put the old value back, or begin a run with the new one in another folder"
                )

    # -----------------------------------------------------------------------------------------------------------
    # Reading

    def checkpoint(self) -> dict[str, Any]:
        """What :meth:`save` saved last, loaded to the CPU, with the whole "history"."""
        self.refuse_if_none()
        path = self.path / CHECKPOINT
        content = read(path)
        while True:
            try:
                return self._with_history(unpacked(content, path))
            except ValueError:
                # A process that trains here may have saved between one file and the next: then all are read again.
                before, content = content, read(path)
                if content == before:
                    raise

    def _with_history(self, state: dict[str, Any]) -> dict[str, Any]:
        self._config()
        recorded, unrecorded = state.pop("recorded", None), state.pop("unrecorded", None)
        if "history" in state:  # as earlier versions saved it, and whoever saves what this returns
            recorded, unrecorded = {}, state["history"]
        recorded = Recorded(**recorded)
        path = self.path / METRICS
        lines = read(path) if os.path.lexists(path) else b""
        head, rest = lines[: recorded.size], lines[recorded.size :]
        # A kill may have left any part of the last lines.
        if crc32(head) != recorded.checksum or len(head) < recorded.size or not _lines(unrecorded).startswith(rest):
            raise ValueError(
                f"{path} does not hold the metrics that the run has written there: it was changed or damaged; put a "
                "copy of it in its place, or begin anew in another folder"
            )
        return {**state, "history": [*map(json.loads, head.splitlines()), *unrecorded]}

    def _config(self) -> dict[str, Any] | None:
        """What config.json holds; None if there is none, which a kill may have left so. ValueError if it is no JSON."""
        path = self.path / CONFIG
        return read_json_object(path) if os.path.lexists(path) else None

    # -----------------------------------------------------------------------------------------------------------
    # Saving

    def save(self, plan: Mapping[str, Any], history: Sequence[Metrics], parts: Mapping[str, Any]) -> None:
        """Bring all files up to date. The time that it takes does not depend on the number of epochs, but for the first
        time of an object, and for the figure, which is drawn rarely.

        Args:
            plan: "epochs", "config" and "rule", all JSON values.
            history: the metrics of the finished epochs; it only ever grows.
            parts: everything with a state_dict, by its name in the checkpoint; None where there is no such part.
        """
        with self.locked():
            unrecorded = list(history[self._recorded.lines :])
            content = packed(plan, parts, recorded=self._recorded._asdict(), unrecorded=unrecorded)
            description = json.dumps(_description(plan, versions()), indent=2).encode() + b"\n"
            config = self.path / CONFIG
            if self._described is None and os.path.lexists(config):
                self._described = read(config)
            if self._described == description:
                write_atomically(self.path / CHECKPOINT, content)
            else:
                # Whoever resumes after a kill in between finds no config.json, rather than one that looks edited.
                write_atomically(self.path / CHECKPOINT, content, remove_first=config)
                write_atomically(config, description)
                self._described = description
            self._record(history, unrecorded)
            self._draw(history, plan["epochs"])

    def _record(self, history: Sequence[Metrics], unrecorded: Sequence[Metrics]) -> None:
        """Append the last metrics to the file, or write it anew where it is not that which this object has written."""
        path = self.path / METRICS
        new = _lines(unrecorded)
        if self._recorded.lines and path.is_file() and path.stat().st_size == self._recorded.size:
            if new:
                append(path, new)
        else:
            write_atomically(path, _lines(history))
        self._recorded = Recorded(len(history), self._recorded.size + len(new), crc32(new, self._recorded.checksum))

    def _draw(self, history: Sequence[Metrics], epochs: int) -> None:
        # A drawing takes longer than an epoch of a small network. That of no epoch loads matplotlib before training
        # begins: interrupts, which mostly hit training, have been seen to crash the process within that import.
        waited = time.monotonic() > self._drawn + SECONDS_BETWEEN_DRAWINGS
        if waited or len(history) in (0, 1, epochs):
            save_figure(self.path / CURVES, lambda: curves(history))
            self._drawn = time.monotonic()


def read_checkpoint(out: str | Path) -> dict[str, Any]:
    """The checkpoint of the run directory ``out``, on the CPU: "epochs" (planned), "config", "rule" (as in
    config.json), "history" (as of :meth:`ceprop_cuda.Trainer.fit`), "network" (a state_dict), and what else a resumed
    run needs.

    Raises FileNotFoundError if there is none, ValueError if it, or one of the files beside it, is damaged or none of a
    run.
    """
    return RunDirectory(folder_path("out", out)).checkpoint()


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of a metrics.jsonl that are whole: the last one may just be being written."""
    lines = read(path).split(b"\n")[:-1]
    return [_parsed(line, path) for line in lines]


def read_json_object(path: Path) -> dict[str, Any]:
    """ValueError, in words, if it is none."""
    return _parsed(read(path), path)


def json_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as they are when they come back from JSON, NumPy's numbers as Python's; TypeError or ValueError, which
    names the key, where that cannot be."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict, got {shown(values)}")
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} must have text as keys, got {shown(key)}")
        if key in RESERVED:
            raise ValueError(f"{name}[{key!r}] has a name that {CONFIG} keeps for the run's own: rename it")
        try:
            json.dumps(value, default=_python_number, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(
                f"{name}[{key!r}] is not JSON serializable: it must be text, a finite number, True, False, None, or a "
                f"list or dict of such, got {shown(value)}"
            ) from error
    return json.loads(json.dumps(dict(values), default=_python_number))


def _python_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{shown(value)} is no JSON")


def _parsed(content: bytes, path: Path) -> Any:
    try:
        values = json.loads(content)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f"{path} holds no JSON: it is damaged, or was put there by something else") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(values).__name__}")
    return values


def _lines(history: Sequence[Metrics]) -> bytes:
    return b"".join(json.dumps(metrics).encode() + b"\n" for metrics in history)


def _description(plan: Mapping[str, Any], made_by: Mapping[str, str] | None) -> dict[str, Any]:
    """What config.json holds."""
    return {**plan["config"], "rule": plan["rule"], "epochs": plan["epochs"], "versions": made_by}


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """By names as a reader would say them."""
    flat: dict[str, Any] = {}
    for key, value in description.items():
        flat |= {f"{key}[{name!r}]": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
