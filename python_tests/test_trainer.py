"""Epochs, metrics, run directories, and what a kill or a divergence leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ceprop_cuda
from ceprop_cuda import BPTT, CEP, EP, Diverged, Trainer, mlp, plots
from ceprop_cuda.data import Batches
from ceprop_cuda.plots import curves, write_atomically
from ceprop_cuda.trainer import Metrics, read_checkpoint

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


def without_seconds(history: list[Metrics]) -> list[Metrics]:
    return [{key: value for key, value in metrics.items() if key != "seconds"} for metrics in history]


def read_metrics(out: Path) -> list[Metrics]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


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


# ---------------------------------------------------------------------------------------------------------------
# Metrics


def test_metrics_are_those_of_the_training_steps_and_the_test() -> None:
    trainer = started("ep")
    history = fit(trainer, epochs=2)

    again = started("ep")
    assert isinstance(again.rule, EP)
    assert again.optimizer is not None
    assert again.scheduler is not None
    batches = train_batches()
    for epoch, metrics in enumerate(history, 1):
        loss, wrong = 0.0, 0
        for x, y in batches:
            again.rule.net.zero_grad()
            out = again.rule.backward(x, y)
            again.optimizer.step()
            loss += out.loss.item() * len(y)
            wrong += sum(int(row.argmax()) != int(label) for row, label in zip(out.output, y, strict=True))
        again.scheduler.step()
        test_x, test_y = samples(30, seed=1)
        test_wrong = (again.rule.predict(test_x, test_y).output.argmax(1) != test_y).sum().item()
        assert metrics["epoch"] == epoch
        assert metrics["train_error"] == pytest.approx(100 * wrong / 60)
        assert metrics["train_loss"] == pytest.approx(loss / 60)
        assert metrics["test_error"] == pytest.approx(100 * test_wrong / 30)
        assert metrics["seconds"] is not None
        assert metrics["seconds"] > 0
        assert set(metrics) == {"epoch", "train_error", "test_error", "train_loss", "seconds"}
    for p, q in zip(trainer.rule.net.parameters(), again.rule.net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", MAKERS)
def test_training_learns(name: str) -> None:
    trainer = started(name)
    before = trainer.evaluate(test_batches())
    history = fit(trainer, epochs=30)
    after = trainer.evaluate(test_batches())
    assert before["error"] > 30
    assert after["error"] == history[-1]["test_error"] < 5
    assert after["loss"] < before["loss"] / 2


def test_bptt_trains_too() -> None:
    net = mlp(12, 8, 3)
    trainer = Trainer(BPTT(net, free_steps=12, unrolled_steps=5), torch.optim.SGD(net.parameters(), lr=0.5))
    history = fit(trainer, epochs=20)
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2


def test_without_test_batches_there_is_no_test_error() -> None:
    history = started("ep").fit(train_batches(), 1, progress=False)
    assert history[0]["test_error"] is None


def test_float_targets_count_like_their_classes() -> None:
    x, y = samples()
    targets = torch.nn.functional.one_hot(y, 3).float()
    trainer = started("ep")
    assert trainer.evaluate([(x, targets)]) == trainer.evaluate([(x, y)])
    history = started("ep").fit([(x, targets)], 2, progress=False)
    assert without_seconds(history) == without_seconds(started("ep").fit([(x, y)], 2, progress=False))


def test_evaluate_weighs_batches_by_their_size_and_changes_nothing() -> None:
    trainer = started("cvf")
    before = [p.clone() for p in trainer.rule.net.parameters()]
    x, y = samples(30)
    whole = trainer.evaluate([(x, y)])
    parts = trainer.evaluate(Batches(x, y, 29))
    assert parts["error"] == pytest.approx(whole["error"])
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert whole["loss"] == pytest.approx(trainer.rule.predict(x, y).loss.item())
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.rule.net.parameters(), strict=True))


def test_the_bar_shows_loss_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    history = started("ep").fit(train_batches(), 2, test=test_batches())
    shown = capsys.readouterr().err
    for metrics in history:
        assert f"epoch {metrics['epoch']}/2: 100%" in shown
        assert f"error {metrics['train_error']:.2f} %, test error {metrics['test_error']:.2f} %" in shown
    started("ep").fit(train_batches(), 1, progress=False)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------------------
# Run directories


def test_a_run_directory_holds_what_it_should(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    history = fit(started("ep"), out, config={"preset": "none", "lr": (0.1, 0.2)})
    assert sorted(contents(out)) == FILES
    assert read_metrics(out) == history
    config = json.loads((out / "config.json").read_text())
    assert config["preset"] == "none"
    assert config["lr"] == [0.1, 0.2]
    assert config["epochs"] == 3
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["ceprop_cuda"] == ceprop_cuda.__version__
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", MAKERS)
def test_the_checkpoint_loads_as_plain_data(name: str, tmp_path: Path) -> None:
    trainer = started(name)
    history = fit(trainer, tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["history"] == history
    assert checkpoint["network"].keys() == trainer.rule.net.state_dict().keys()
    assert (checkpoint["optimizer"] is None) == (name == "cvf")
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
    refused(Trainer(CEP(net, 5, 5, 0.1, 0.1)), "optimizer")
    refused(Trainer(EP(net, 5, 5, 0.1), torch.optim.SGD(net.parameters(), 0.1)), "scheduler")
    wide = mlp(12, 9, 3)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    refused(Trainer(EP(wide, 5, 5, 0.1), optimizer, scheduler), r"\(9, 12\).*\(8, 12\)")


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2]):
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
# Kills


class Killed(BaseException):
    """Stands for a kill within this process: nothing of the package catches it."""


def test_a_kill_at_any_write_is_followed_by_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a run dies before it begins, half-way, before it is put in place, and right after."""
    replace, fsync = os.replace, os.fsync
    moments: list[tuple[str, int]] = []
    # Drawing takes longer than all the rest of this test.
    monkeypatch.setattr("ceprop_cuda.trainer.curves", lambda _history, path: write_atomically(path, bytes_of_a_figure))

    def bytes_of_a_figure(file: Any) -> None:
        file.write(b"figure")

    def run_until(moment: str, number: int, out: Path) -> bool:
        """Whether the run got to its ``number``-th write, where it was killed at ``moment``."""
        writes = 0

        def dying_open(path: Path, mode: str) -> Any:
            nonlocal writes
            writes += 1
            if writes == number and moment == "before":
                raise Killed
            return open(path, mode)

        def dying_fsync(descriptor: int) -> None:
            fsync(descriptor)
            if writes == number and moment == "half-way":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                raise Killed

        def dying_replace(source: Path, target: Path) -> None:
            if writes == number and moment == "unplaced":
                raise Killed
            replace(source, target)
            if writes == number and moment == "placed":
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(plots, "open", dying_open, raising=False)
            patch.setattr(plots.os, "fsync", dying_fsync)
            patch.setattr(plots.os, "replace", dying_replace)
            try:
                fit(started("cvf"), out, epochs=2)
            except Killed:
                return True
        return False

    for moment in ("before", "half-way", "unplaced", "placed"):
        number = 1
        while run_until(moment, number, out := tmp_path / f"{moment}-{number}"):
            moments.append((moment, number))
            trainer = cvf_trainer() if (out / "checkpoint.pt").exists() else started("cvf")
            fit(trainer, out, epochs=2, resume=(out / "checkpoint.pt").exists())
            assert_same_run(trainer, out, "cvf", epochs=2)
            number += 1
    # 4 files at the start and after each of 2 epochs; the run is only ever restarted for want of its first checkpoint.
    assert len(moments) == 4 * 12


KILLED_PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_trainer

class Deadly(test_trainer.Batches):
    epochs = 0
    def __iter__(self):
        self.epochs += 1
        for number, batch in enumerate(super().__iter__()):
            if self.epochs == 2 and number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

x, y = test_trainer.samples()
batches = Deadly(x, y, batch_size=8, shuffle=True, seed=7)
test_trainer.fit(test_trainer.started({name!r}), Path({out!r}), batches=batches)
"""


@pytest.mark.parametrize("name", MAKERS)
def test_sigkill_within_an_epoch_is_followed_by_the_same_run(name: str, tmp_path: Path) -> None:
    out = tmp_path / "a"
    program = KILLED_PROGRAM.format(tests=str(Path(__file__).parent), name=name, out=str(out))
    package = str(Path(ceprop_cuda.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": package}, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [metrics["epoch"] for metrics in read_metrics(out)] == [1]
    trainer = MAKERS[name]()
    fit(trainer, out, resume=True)
    assert_same_run(trainer, out, name)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new, unfinished")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"a": b"new"}


# ---------------------------------------------------------------------------------------------------------------
# Divergence


class Sabotaged(Batches):
    """Does ``harm`` in epoch 3, before batch 4 or after the last one."""

    def __init__(self, harm: Callable[[], object], after_last: bool = False) -> None:
        super().__init__(*samples(), batch_size=8, shuffle=True, seed=7)
        self.harm = harm
        self.after_last = after_last
        self.epochs = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs += 1
        for number, batch in enumerate(super().__iter__(), 1):
            if not self.after_last and (self.epochs, number) == (3, 4):
                self.harm()
            yield batch
        if self.after_last and self.epochs == 3:
            self.harm()


def assert_only_good_epochs_are_kept(out: Path) -> None:
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    assert [metrics["epoch"] for metrics in checkpoint["history"]] == [1, 2]
    assert read_metrics(out) == checkpoint["history"]
    assert all(p.isfinite().all() for p in checkpoint["network"].values())
    assert sorted(contents(out)) == FILES


def test_states_that_are_not_finite_end_the_run_at_once(tmp_path: Path) -> None:
    trainer = started("cvf")

    def harm() -> None:
        with torch.no_grad():
            trainer.rule.net.weights[1][0, 0] = float("nan")

    message = r"^epoch 3, batch 4: states of layer 0, states of layer 1, .*weights of connection 1.* are not finite"
    with pytest.raises(Diverged, match=message):
        fit(trainer, tmp_path, epochs=5, batches=Sabotaged(harm))
    assert_only_good_epochs_are_kept(tmp_path)
    resumed = cvf_trainer()
    fit(resumed, tmp_path, resume=True)
    assert_same_run(resumed, tmp_path, "cvf")


@pytest.mark.parametrize(
    ("group", "connection", "named"),
    [("weights", 0, "weights"), ("biases", 1, "biases"), ("feedback", 1, "feedback weights")],
)
def test_parameters_that_are_not_finite_are_never_saved(
    group: str, connection: int, named: str, tmp_path: Path
) -> None:
    """Not even if they went bad in the last update of an epoch, which no state has seen yet."""
    trainer = started("cvf")

    def harm() -> None:
        with torch.no_grad():
            getattr(trainer.rule.net, group)[connection].view(-1)[2] = float("inf")

    with pytest.raises(Diverged, match=rf"^epoch 3, batch 8: {named} of connection {connection} are not finite"):
        fit(trainer, tmp_path, epochs=5, batches=Sabotaged(harm, after_last=True))
    assert_only_good_epochs_are_kept(tmp_path)


def test_a_huge_learning_rate_diverges_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    net = mlp(12, 8, 3, activation="linear")
    with torch.no_grad():
        net.weights[1].mul_(0.3)  # so that the linear dynamics converge
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = Trainer(EP(net, free_steps=12, nudged_steps=5, beta=0.2), optimizer)

    def harm() -> None:
        optimizer.param_groups[0]["lr"] = 1e4

    with pytest.raises(Diverged, match=r"^epoch 3, batch [5-8]: states of layer 0.*learning rate too high\?"):
        fit(trainer, tmp_path, epochs=5, batches=Sabotaged(harm))
    assert_only_good_epochs_are_kept(tmp_path)


def test_bad_inputs_are_not_blamed_on_the_learning_rate() -> None:
    x, y = samples(8)
    with pytest.raises(Diverged, match=r"^epoch 1, batch 2: the inputs hold NaN or infinite values$"):
        fit(started("ep"), batches=[(x, y), (x / 0, y)])


def test_states_that_overflow_only_in_the_sum_are_fine() -> None:
    net = mlp(1, 1, bias=False, activation="linear")
    with torch.no_grad():
        net.weights[0].fill_(3e38)
    x = torch.ones(4, 1)
    trainer = Trainer(CEP(net, 1, 1, 0.1, 0.1))
    assert torch.isinf(net.relax(x, 1)[0].sum())
    assert trainer.evaluate([(x, x)])["error"] == 0


def test_evaluate_names_the_batch_of_bad_states() -> None:
    x, y = samples(8)
    with pytest.raises(Diverged, match=r"^evaluation, batch 2: the inputs"):
        started("ep").evaluate([(x, y), (x * float("nan"), y)])


# ---------------------------------------------------------------------------------------------------------------
# Arguments


def test_rules_and_optimizers_that_do_not_go_together_are_refused() -> None:
    net = mlp(12, 8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    ep, cep, bptt = EP(net, 5, 5, 0.1), CEP(net, 5, 5, 0.1, 0.1), BPTT(net, 5, 5)
    with pytest.raises(TypeError, match=r"EP only computes gradients: it needs a torch\.optim optimizer, got None"):
        Trainer(ep)
    with pytest.raises(TypeError, match="BPTT only computes gradients"):
        Trainer(bptt)
    with pytest.raises(TypeError, match=r"got 0\.1"):
        Trainer(ep, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CEP moves the weights itself"):
        Trainer(cep, optimizer)
    with pytest.raises(ValueError, match="CEP moves the weights itself"):
        Trainer(cep, scheduler=schedule)
    with pytest.raises(ValueError, match="another optimizer"):
        Trainer(ep, optimizer, schedule)
    with pytest.raises(TypeError, match="ReduceLROnPlateau"):
        Trainer(ep, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(TypeError, match="rule must be an EP, CEP or BPTT, got Network"):
        Trainer(net)  # type: ignore[arg-type]


def test_wrong_arguments_of_fit_are_refused() -> None:
    trainer = started("ep")
    with pytest.raises(ValueError, match="epochs must be an int >= 1, got 0"):
        trainer.fit(train_batches(), 0)
    with pytest.raises(ValueError, match="resume=True needs out="):
        trainer.fit(train_batches(), 1, resume=True)
    with pytest.raises(TypeError, match="train_batches is iterated once per epoch, got an iterator"):
        trainer.fit(iter(train_batches()), 1)
    with pytest.raises(TypeError, match="test is iterated once per epoch, got an iterator"):
        trainer.fit(train_batches(), 1, test=iter(test_batches()))
    with pytest.raises(ValueError, match="no batch"):
        trainer.fit([], 1, progress=False)
    with pytest.raises(ValueError, match="no batch"):
        trainer.evaluate([])
    with pytest.raises(TypeError, match="not JSON serializable"):
        trainer.fit(train_batches(), 1, config={"data": object()})


# ---------------------------------------------------------------------------------------------------------------
# Curves


@pytest.mark.parametrize("test_error", [None, 0.0, 3.0])
def test_curves_of_any_history(test_error: float | None, tmp_path: Path) -> None:
    history = [{"epoch": epoch, "train_error": 50 / epoch, "test_error": test_error} for epoch in range(1, 60)]
    for length in (0, 1, 2, 59):
        path = tmp_path / f"{length}.png"
        curves(history[:length], path)
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4
    assert "matplotlib.pyplot" not in sys.modules
