"""Small training runs, and what is left of them, for the tests of the trainer and of run directories."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ceprop_cuda import CEP, EP, Trainer, mlp
from ceprop_cuda.data import Batches
from ceprop_cuda.run_directory import Metrics, read_checkpoint

FILES = ["checkpoint.pt", "config.json", "curves.png", "metrics.jsonl"]


def samples(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes around three corners of the unit cube of 12 dimensions: x (count, 12), y (count,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    centres = torch.eye(3).repeat_interleave(4, dim=1)
    return (0.8 * centres[y] + 0.2 * torch.rand(count, 12, generator=generator)), y


def train_batches() -> Batches:
    return Batches(*samples(), batch_size=8, shuffle=True, seed=7)


def test_batches() -> Batches:
    return Batches(*samples(30, seed=1), batch_size=16)


test_batches.__test__ = False  # type: ignore[attr-defined]


def ep_trainer() -> Trainer:
    """EP with momentum and a schedule: an optimizer and a scheduler with states of their own."""
    net = mlp(12, 8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3], gamma=0.5)
    return Trainer(EP(net, free_steps=12, nudged_steps=5, beta=0.2), optimizer, scheduler)


def cvf_trainer() -> Trainer:
    """C-VF with random signs of beta, which torch's global generator draws."""
    net = mlp(12, 8, 3, feedback="free")
    net.set_angle(0)
    return Trainer(CEP(net, free_steps=12, nudged_steps=5, beta=0.2, lr=(0.05, 0.02), nudging="random_sign"))


MAKERS = {"ep": ep_trainer, "cvf": cvf_trainer}


def started(name: str) -> Trainer:
    """A trainer in the state that every run of these tests begins with."""
    torch.manual_seed(11)
    return MAKERS[name]()


def fit(trainer: Trainer, out: Path | None = None, epochs: int = 3, batches: Any = None, **settings: Any) -> Any:
    batches = train_batches() if batches is None else batches
    return trainer.fit(batches, epochs, test=test_batches(), out=out, progress=False, **settings)


def without_seconds(history: list[Metrics]) -> list[dict[str, Any]]:
    return [{key: value for key, value in metrics.items() if key != "seconds"} for metrics in history]


def read_metrics(out: Path) -> list[Metrics]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def plain(value: Any) -> Any:
    """Tensors as what == compares."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@cache
def uninterrupted(name: str, epochs: int) -> tuple[dict[str, Tensor], list[Metrics]]:
    trainer = started(name)
    history = fit(trainer, epochs=epochs)
    return trainer.rule.net.state_dict(), history


def assert_same_run(trainer: Trainer, out: Path, name: str, epochs: int = 3) -> None:
    """``trainer`` and its files ended bitwise as an uninterrupted run in memory does, seconds aside."""
    expected_network, expected = uninterrupted(name, epochs)
    for key, p in expected_network.items():
        assert torch.equal(trainer.rule.net.state_dict()[key], p), key
        assert torch.equal(read_checkpoint(out)["network"][key], p), key
    assert without_seconds(read_metrics(out)) == without_seconds(expected)
    assert sorted(contents(out)) == FILES
