"""The files of a run, and resuming it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training_runs import (
    FILES,
    MAKERS,
    assert_same_run,
    contents,
    cvf_trainer,
    ep_trainer,
    fit,
    read_metrics,
    samples,
    started,
    train_batches,
    without_seconds,
)

import ceprop_cuda
from ceprop_cuda import BPTT, CEP, EP, Diverged, Trainer, mlp
from ceprop_cuda.data import Batches
from ceprop_cuda.run_directory import curves, read_checkpoint

# ---------------------------------------------------------------------------------------------------------------
# Files and resuming


def test_a_run_directory_holds_what_it_should(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    history = fit(started("ep"), out, config={"preset": "none", "lr": (0.1, 0.2)})
    assert sorted(contents(out)) == FILES
    assert read_metrics(out) == history
    config = json.loads((out / "config.json").read_text())
    assert config["preset"] == "none"
    assert config["lr"] == [0.1, 0.2]
    assert config["epochs"] == 3
    assert config["rule"] == {
        "name": "EP",
        "free_steps": 12,
        "nudged_steps": 5,
        "beta": 0.2,
        "nudging": "positive",
        "nudge_at": "state",
        "loss": "mse",
        "accumulate": False,
        "shared_update": False,
        "tolerance": None,
        "gate": None,
        "network": mlp(12, 8, 3).extra_repr(),
        "dtype": "float32",
    }
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["ceprop_cuda"] == ceprop_cuda.__version__
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", MAKERS)
def test_the_checkpoint_loads_as_plain_data(name: str, tmp_path: Path) -> None:
    trainer = started(name)
    history = fit(trainer, tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert "history" not in checkpoint  # but for the last epoch: metrics.jsonl has it
    assert read_checkpoint(tmp_path)["history"] == read_metrics(tmp_path) == history
    assert checkpoint["network"].keys() == trainer.rule.net.state_dict().keys()
    assert len(checkpoint["optimizer"]["param_groups"]) == (2 if name == "cvf" else 1)  # of connections, or all in one
    assert torch.equal(checkpoint["rng"], torch.get_rng_state())


def test_a_used_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=1)
    before = contents(tmp_path)
    trainer = started("ep")
    weights = [p.clone() for p in trainer.rule.net.parameters()]
    with pytest.raises(FileExistsError, match=r"holds a run already.*resume=True.*another folder"):
        fit(trainer, tmp_path)
    assert contents(tmp_path) == before
    assert all(torch.equal(p, q) for p, q in zip(weights, trainer.rule.net.parameters(), strict=True))


def test_each_of_the_files_marks_a_directory_as_used(tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "config.json", "metrics.jsonl"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("something")
        with pytest.raises(FileExistsError, match=name):
            fit(started("ep"), out)
        assert contents(out) == {name: b"something"}


class Stop(Exception):
    """Ends a run within its first epoch."""


class Stopping(Batches):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from list(super().__iter__())[:2]
        raise Stop


@pytest.mark.parametrize("error", [Stop, TypeError, Diverged])
def test_a_run_that_ended_in_its_first_epoch_does_not_block_its_folder(error: type[Exception], tmp_path: Path) -> None:
    x, y = samples()
    bad = {
        Stop: Stopping(x, y, batch_size=8),
        TypeError: Batches(x.double(), y, batch_size=8),
        Diverged: Batches(x / 0, y, batch_size=8),
    }
    first = Trainer(CEP(mlp(12, 8, 3), 3, 3, 0.1, lr=1.0))  # another run than the second
    with pytest.raises(error):
        fit(first, tmp_path, batches=bad[error], config={"first": True})
    assert read_checkpoint(tmp_path)["history"] == []

    trainer = started("ep")
    fit(trainer, tmp_path)
    assert_same_run(trainer, tmp_path, "ep")
    config = json.loads((tmp_path / "config.json").read_text())
    assert "first" not in config
    assert config["rule"]["name"] == "EP"


def test_a_checkpoint_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    for number, content in enumerate(({"weight": torch.ones(2)}, torch.ones(2), [])):
        out = tmp_path / str(number)
        out.mkdir()
        torch.save(content, out / "checkpoint.pt")
        before = contents(out)
        with pytest.raises(FileExistsError, match=r"checkpoint\.pt"):
            fit(started("ep"), out)
        assert contents(out) == before


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_to_resume_is_refused(existing: bool, tmp_path: Path) -> None:
    out = tmp_path / "a"
    if existing:
        out.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no run in .*no checkpoint\.pt"):
        fit(started("ep"), out, resume=True)
    assert out.exists() == existing


def test_resume_refuses_what_does_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=2, config={"seed": 1})
    before = contents(tmp_path)

    def refused(trainer: Trainer, message: str, config: Any = None, **settings: Any) -> None:
        torch.manual_seed(5)
        rng = torch.get_rng_state()
        weights = {key: p.clone() for key, p in trainer.rule.net.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            fit(trainer, tmp_path, resume=True, config=config or {"seed": 1}, **settings)
        assert contents(tmp_path) == before
        assert all(torch.equal(p, weights[key]) for key, p in trainer.rule.net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)

    refused(started("ep"), r"config\['seed'\] is 2, but the run to resume has 1", {"seed": 2})
    refused(started("ep"), r"config\['lr'\] is 0.1, but the run to resume has None", {"seed": 1, "lr": 0.1})
    refused(started("ep"), "epochs=1, but the run to resume has finished 2", epochs=1)
    refused(started("ep"), "train_batches", batches=list(train_batches()))
    net = mlp(12, 8, 3)
    refused(Trainer(EP(net, 12, 5, 0.2), torch.optim.SGD(net.parameters(), 0.1)), "scheduler")
    wide = mlp(12, 9, 3)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    refused(Trainer(EP(wide, 12, 5, 0.2), optimizer, scheduler), r"\(9, 12\).*\(8, 12\)")


def test_a_checkpoint_that_knows_no_schedulers_is_resumed_without_one_only(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(11)
        net = mlp(12, 8, 3)
        return Trainer(EP(net, 12, 5, 0.2), torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))

    whole = fit(trainer())
    fit(trainer(), tmp_path, epochs=1)
    checkpoint = read_checkpoint(tmp_path)
    del checkpoint["scheduler"]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="the scheduler state is missing on one side: the run to resume has none"):
        fit(ep_trainer(), tmp_path, resume=True)
    assert without_seconds(fit(trainer(), tmp_path, resume=True)) == without_seconds(whole)


def with_optimizer(rule: EP | BPTT) -> Trainer:
    optimizer = torch.optim.SGD(rule.net.parameters(), lr=0.1, momentum=0.9)
    return Trainer(rule, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Trainer(CEP(mlp(12, 8, 3), 12, 5, 0.2, 0.1)), r"rule\['name'\] is 'CEP', but .* has 'EP'"),
        (lambda: with_optimizer(BPTT(mlp(12, 8, 3), 12, 5)), r"rule\['name'\] is 'BPTT', but .* has 'EP'"),
        (lambda: with_optimizer(EP(mlp(12, 8, 3), 13, 5, 0.2)), r"rule\['free_steps'\] is 13, but .* has 12"),
        (lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 6, 0.2)), r"rule\['nudged_steps'\] is 6, but .* has 5"),
        (lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 5, -0.2)), r"rule\['beta'\] is -0\.2, but .* has 0\.2"),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 5, 0.2, nudging="symmetric")),
            r"rule\['nudging'\] is 'symmetric', but .* has 'positive'",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 5, 0.2, nudge_at="drive")),
            r"rule\['nudge_at'\] is 'drive', but .* has 'state'",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 5, 0.2, accumulate=True)),
            r"rule\['accumulate'\] is True, but .* has False",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3, activation="tanh"), 12, 5, 0.2)),
            r"rule\['network'\] is \"activation='tanh'.*, but .* has \"activation='sigmoid'",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3, dynamics="energy", dt=0.4), 12, 5, 0.2)),
            r"rule\['network'\] is .*dynamics='energy', dt=0\.4.*, but .* has .*dynamics='prototypical'",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3, schedule="asynchronous"), 12, 5, 0.2)),
            r"rule\['network'\] is .*schedule='asynchronous'\", but .* readout=None\"",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3), 12, 5, 0.2, tolerance=1e-4)),
            r"rule\['tolerance'\] is 0\.0001, but .* has None",
        ),
        (
            lambda: with_optimizer(EP(mlp(12, 8, 3).double(), 12, 5, 0.2)),
            r"rule\['dtype'\] is 'float64', but .* has 'float32'",
        ),
    ],
)
def test_resume_refuses_to_train_in_another_way(other: Callable[[], Trainer], message: str, tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=1)
    before = contents(tmp_path)
    trainer = other()
    weights = {key: p.clone() for key, p in trainer.rule.net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(trainer, tmp_path, resume=True)
    assert contents(tmp_path) == before
    assert all(torch.equal(p, weights[key]) for key, p in trainer.rule.net.state_dict().items())


def test_resume_compares_the_rates_of_continual_ep_but_not_what_runs_it(tmp_path: Path) -> None:
    fit(started("cvf"), tmp_path, epochs=1)
    trainer = cvf_trainer()
    assert isinstance(trainer.rule, CEP)
    rates = trainer.rule.lr
    trainer.rule.lr = [0.05, 0.03]
    with pytest.raises(
        ValueError, match=r"rule\['lr'\] is \[0\.05, 0\.03\], but the run to resume has \[0\.05, 0\.02\]"
    ):
        fit(trainer, tmp_path, resume=True)
    trainer.rule.lr, trainer.rule.backend, trainer.rule.update = rates, "reference", "literal"
    assert len(fit(trainer, tmp_path, resume=True)) == 3


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (b"", b"no checkpoint", b"something", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
            fit(started("ep"), tmp_path, resume=True)


def test_a_finished_run_resumes_to_more_epochs(tmp_path: Path) -> None:
    fit(started("cvf"), tmp_path, epochs=1)
    trainer = Trainer(MAKERS["cvf"]().rule)  # other weights and another state of the global generator
    history = fit(trainer, tmp_path, resume=True)
    assert history == read_metrics(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3
    assert_same_run(trainer, tmp_path, "cvf")


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    history = fit(started("cvf"), tmp_path)
    trainer = cvf_trainer()
    assert fit(trainer, tmp_path, resume=True) == history
    assert_same_run(trainer, tmp_path, "cvf")


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_dataloader_resumes_too(own_generator: bool, tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3) if own_generator else None
        return DataLoader(TensorDataset(*samples()), batch_size=8, shuffle=True, generator=generator)

    whole = started("ep")
    expected = fit(whole, batches=loader())
    fit(started("ep"), tmp_path, epochs=1, batches=loader())
    resumed = ep_trainer()
    history = fit(resumed, tmp_path, resume=True, batches=loader())
    assert without_seconds(history) == without_seconds(expected)
    for key, p in whole.rule.net.state_dict().items():
        assert torch.equal(resumed.rule.net.state_dict()[key], p)


# ---------------------------------------------------------------------------------------------------------------
# Curves


@pytest.mark.parametrize("test_error", [None, 0.0, 3.0])
def test_curves_of_any_history(test_error: float | None) -> None:
    history = [{"epoch": epoch, "train_error": 50 / epoch, "test_error": test_error} for epoch in range(1, 60)]
    images = [curves(history[:length]) for length in (0, 1, 2, 59)]
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert len(set(images)) == 4
    assert "matplotlib.pyplot" not in sys.modules
