"""What runs write: from earlier versions on, to full disks, at which cost; and what was edited there."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    FILES,
    MAKERS,
    assert_same_run,
    contents,
    ep_trainer,
    fit,
    plain,
    read_metrics,
    samples,
    started,
    without_seconds,
)

from ceprop_cuda import CEP, Trainer, mlp
from ceprop_cuda.data import Batches
from ceprop_cuda.run_directory import RunDirectory, checkpoint, curves, directory, read_checkpoint

# ---------------------------------------------------------------------------------------------------------------
# What was made or edited elsewhere


def test_an_edit_of_config_json_is_not_passed_over(tmp_path: Path) -> None:
    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        shutil.copy(tmp_path / "kept.json", tmp_path / "config.json")
        config = json.loads((tmp_path / "config.json").read_text())
        change(config)
        (tmp_path / "config.json").write_text(json.dumps(config))

    fit(started("ep"), tmp_path, epochs=1, config={"lr": 0.5})
    shutil.copy(tmp_path / "config.json", tmp_path / "kept.json")
    for change, message in (
        (lambda config: config.update(lr=0.1), "config.json has lr 0.1, but the run has 0.5"),
        (lambda config: config.pop("lr"), "config.json has lr None, but the run has 0.5"),
        (lambda config: config.update(batch=9), "config.json has batch 9, but the run has None"),
        (lambda config: config.update(epochs=9), "config.json has epochs 9, but the run has 1"),
        (lambda config: config["rule"].update(beta=0.1), "config.json has rule['beta'] 0.1, but the run has 0.2"),
    ):
        edit(change)
        with pytest.raises(ValueError) as refused:
            fit(ep_trainer(), tmp_path, resume=True, config={"lr": 0.5})
        assert message in str(refused.value)
    edit(lambda config: None)  # formatted otherwise
    fit(trainer := ep_trainer(), tmp_path, resume=True, config={"lr": 0.5})
    (tmp_path / "kept.json").unlink()
    assert_same_run(trainer, tmp_path, "ep")


def test_checkpoints_with_the_whole_history_are_gone_on_with(tmp_path: Path) -> None:
    """As earlier versions saved them, metrics.jsonl in full or killed before its last lines."""
    for lines in (2, 1, 0):
        out = tmp_path / str(lines)
        fit(started("ep"), out, epochs=2)
        state = read_checkpoint(out)
        del state["versions"], state["kinds"]
        torch.save(state, out / "checkpoint.pt")
        metrics = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / "metrics.jsonl").write_text("".join(metrics[:lines]))
        fit(trainer := ep_trainer(), out, resume=True)
        assert_same_run(trainer, out, "ep")


def test_other_versions_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = checkpoint.versions()
    for module in (checkpoint, directory):
        monkeypatch.setattr(module, "versions", lambda: here | {"torch": "2.0", "cpu_kernels": "other"})
    fit(started("ep"), tmp_path, epochs=1)
    monkeypatch.undo()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fit(trainer := ep_trainer(), tmp_path, resume=True)
    assert_same_run(trainer, tmp_path, "ep")
    (record,) = caplog.records
    kernels = here["cpu_kernels"]
    assert f"made by torch 2.0, now {torch.__version__}, cpu_kernels other, now {kernels}:" in record.getMessage()


OPTIMIZERS = {
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
}
lr_scheduler = torch.optim.lr_scheduler
SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda optimizer: lr_scheduler.StepLR(optimizer, 1),
    lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4),
    lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
    lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
    lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.001, 0.1),
    lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [1]
    ),
    lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.PolynomialLR(optimizer)], optimizer
    ),
]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning")
def test_every_optimizer_and_scheduler_of_torch_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "curves", lambda _: b"figure")
    no_schedule = [(kind, None) for kind in sorted(OPTIMIZERS, key=lambda kind: kind.__name__)]
    for number, (kind, schedule) in enumerate([*no_schedule, *((torch.optim.SGD, each) for each in SCHEDULERS)]):

        def trainer(kind: Any = kind, schedule: Any = schedule) -> Trainer:
            made = MAKERS["ep"]()
            momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
            optimizer = kind(made.rule.net.parameters(), lr=0.01, **momentum)
            return Trainer(made.rule, optimizer, None if schedule is None else schedule(optimizer))

        torch.manual_seed(11)
        whole = fit(whole_trainer := trainer(), epochs=3)
        torch.manual_seed(11)
        fit(trainer(), tmp_path / str(number), epochs=2)
        history = fit(resumed := trainer(), tmp_path / str(number), resume=True)
        assert without_seconds(history) == without_seconds(whole), (kind, number)
        assert plain(resumed.rule.net.state_dict()) == plain(whole_trainer.rule.net.state_dict()), (kind, number)


# ---------------------------------------------------------------------------------------------------------------
# Full disks, and what saving costs


FIRST_SAVE = [(name, 0) for name in FILES if name != "metrics.jsonl"]  # of which nothing is to be written then
LATER_SAVES = [(name, epochs) for name in FILES if name != "config.json" for epochs in (1, 2)]


@pytest.mark.parametrize(("name", "epochs"), FIRST_SAVE + LATER_SAVES)
def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(
    name: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full when this file is saved after ``epochs`` epochs."""
    write, pack, saved = os.write, directory.packed, -1

    def counting(*arguments: Any, **more: Any) -> bytes:
        nonlocal saved
        saved += 1
        return pack(*arguments, **more)

    def full(descriptor: int, content: bytes) -> int:
        if saved == epochs and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(name):
            write(descriptor, content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(directory, "curves", lambda _: b"figure")
    monkeypatch.setattr(directory, "SECONDS_BETWEEN_DRAWINGS", 0)
    out = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(directory, "packed", counting)
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=rf"^{out / name} cannot be written: its disk is full; make room there"):
            fit(started("ep"), out)
    assert set(contents(out)) <= set(FILES)
    resume = (out / "checkpoint.pt").exists()
    fit(trainer := ep_trainer() if resume else started("ep"), out, resume=resume)
    assert_same_run(trainer, out, "ep")


def test_saving_takes_no_longer_after_many_epochs(tmp_path: Path) -> None:
    """By the bytes, which do not depend on what else the machine does; the time by two orders of magnitude."""
    metrics: Any = {"epoch": 0, "train_error": 12.3, "test_error": 12.3, "train_loss": 0.123, "seconds": 0.1}
    history = [metrics | {"epoch": epoch, "steps": [20.0, 10.0]} for epoch in range(1, 5001)]
    plan = {"epochs": 10**6, "config": {}, "rule": {}}
    run, parts = RunDirectory(tmp_path), {"network": mlp(64, 32, 10)}
    run._drawn = time.monotonic() + 3600
    sizes = {}
    for epochs in (10, 11, 4999, 5000):
        run.save(plan, history[:epochs], parts)
        sizes[epochs] = (tmp_path / "checkpoint.pt").stat().st_size
    assert abs(sizes[5000] - sizes[11]) < 200
    assert read_metrics(tmp_path) == read_checkpoint(tmp_path)["history"] == history
    (tmp_path / "metrics.jsonl").unlink()  # by somebody, while the run goes on
    run.save(plan, history, parts)
    assert read_metrics(tmp_path) == read_checkpoint(tmp_path)["history"] == history


# ---------------------------------------------------------------------------------------------------------------
# Config and figure


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"path": Path("a")}, TypeError, r"config\['path'\] is not JSON serializable.*PosixPath"),
        ({"a": {"b": {1, 2}}}, TypeError, r"config\['a'\]"),
        ({"x": np.ones(2)}, TypeError, r"config\['x'\]"),
        ({"x": torch.ones(())}, TypeError, r"config\['x'\]"),
        ({"x": float("nan")}, ValueError, r"config\['x'\]"),
        ({"x": np.float64("inf")}, ValueError, r"config\['x'\]"),
        ({3: 4}, TypeError, "config must have text as keys, got 3"),
        ({"epochs": 3}, ValueError, r"config\['epochs'\] has a name that config\.json keeps"),
        ([1], TypeError, "config must be a dict"),
    ],
)
def test_a_config_that_is_no_json_is_refused_by_its_key(
    config: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    with pytest.raises(kind, match=message):
        fit(started("ep"), out, config=config)
    assert not out.exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    config = {"seed": np.int64(3), "lr": [np.float32(0.5)], "deep": {"flag": np.bool_(True)}}
    fit(started("ep"), tmp_path, epochs=1, config=config)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert (stated["seed"], stated["lr"], stated["deep"]) == (3, [0.5], {"flag": True})
    fit(trainer := ep_trainer(), tmp_path, resume=True, config={"seed": 3, "lr": [0.5], "deep": {"flag": True}})
    assert_same_run(trainer, tmp_path, "ep")
    rule = CEP(mlp(12, 8, 3), np.int64(3), np.int64(2), np.float32(0.5), lr=np.float64(0.1))
    fit(Trainer(rule), tmp_path / "numpy", epochs=1)


def test_batches_whose_state_no_checkpoint_gives_back_are_refused_at_once(tmp_path: Path) -> None:
    class OfNumPy(Batches):
        def state_dict(self) -> dict[str, Any]:
            return {"orders": np.random.default_rng(0)}

    out = tmp_path / "a"
    with pytest.raises(TypeError, match=r"the state_dict\(\) of the train_batches must be made of tensors, numbers"):
        fit(started("ep"), out, batches=OfNumPy(*samples(), 8))
    assert contents(out) == {}


def test_a_figure_that_cannot_be_drawn_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> bytes:
        raise RuntimeError("no ink")

    monkeypatch.setattr(directory, "curves", fail)
    monkeypatch.setattr(directory, "SECONDS_BETWEEN_DRAWINGS", 0)
    with caplog.at_level(logging.WARNING):
        assert len(fit(started("ep"), tmp_path)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'curves.png'} is not drawn: RuntimeError: no ink"
    ]
    assert sorted(contents(tmp_path)) == [name for name in FILES if name != "curves.png"]
    assert curves([]).startswith(b"\x89PNG")
