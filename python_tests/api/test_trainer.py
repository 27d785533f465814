"""Epochs, metrics, arguments, and what a divergence leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import (
    FILES,
    MAKERS,
    assert_same_run,
    contents,
    cvf_trainer,
    fit,
    read_metrics,
    samples,
    started,
    test_batches,
    train_batches,
    without_seconds,
)

from ceprop_cuda import BPTT, CEP, EP, Diverged, Trainer, mlp
from ceprop_cuda.data import Batches, load
from ceprop_cuda.run_directory import read_checkpoint

# ---------------------------------------------------------------------------------------------------------------
# Metrics and learning


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
        assert metrics["seconds"] > 0
        assert metrics["steps"] == [12, 5]
        assert set(metrics) == {"epoch", "train_error", "test_error", "train_loss", "seconds", "steps"}
    for p, q in zip(trainer.rule.net.parameters(), again.rule.net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("rule", ["EP", "CEP"])
def test_steps_are_the_mean_of_each_phase(rule: str) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(11)
        net = mlp(12, 8, 3)
        phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 40, "beta": 0.3, "nudging": "symmetric"}
        if rule == "CEP":
            return Trainer(CEP(net, lr=0.1, tolerance=1e-4, **phases))
        return Trainer(EP(net, tolerance=1e-4, **phases), torch.optim.SGD(net.parameters(), lr=0.5))

    trained, again = trainer(), trainer()
    history = fit(trained, epochs=2)
    batches = train_batches()
    for metrics in history:
        steps = [again._learn(x, y).steps.tolist() for x, y in batches]
        assert metrics["steps"] == pytest.approx([sum(phase) / len(steps) for phase in zip(*steps, strict=True)])
        assert metrics["steps"][0] < 60
    assert len({tuple(of_batch) for of_batch in steps}) > 1
    assert len(metrics["steps"]) == (4 if rule == "CEP" else 3)


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


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_one_and_two_threads_learn_the_same_weights(threads: Callable[[int], None]) -> None:
    digits = load("digits")
    learned = []
    for count in (1, 2):
        threads(count)
        torch.manual_seed(0)
        net = mlp(64, 48, 10)
        before = net.weights[0].clone()
        batches = Batches(digits.train_x, digits.train_y, batch_size=20, shuffle=True)
        rule = CEP(net, free_steps=10, nudged_steps=5, beta=0.5, lr=(0.04, 0.02), backend="fused")
        Trainer(rule).fit(batches, 2, progress=False)
        assert not torch.equal(net.weights[0], before)
        learned.append(net.state_dict())
    for key, p in learned[0].items():
        assert torch.equal(p, learned[1][key]), key


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


class WrittenOver(Batches):
    """Batches that share their memory."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = (torch.empty_like(part) for part in next(super().__iter__()))
        for images, labels in super().__iter__():
            yield x.copy_(images), y.copy_(labels)


def test_a_batch_may_be_written_over_the_one_before() -> None:
    histories = [started("ep").fit(kind(*samples(20), 5), 1, progress=False) for kind in (Batches, WrittenOver)]
    assert without_seconds(histories[0]) == without_seconds(histories[1])


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
    history = started("ep").fit(train_batches(), 2, test=test_batches(), progress=True)
    shown = capsys.readouterr().err
    for metrics in history:
        assert f"epoch {metrics['epoch']}/2: 100%" in shown
        assert f"error {metrics['train_error']:.2f} %, test error {metrics['test_error']:.2f} %" in shown
    started("ep").fit(train_batches(), 1, progress=False)
    assert capsys.readouterr().err == ""


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
    checkpoint = read_checkpoint(out)
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
    assert trainer.evaluate([(x, x)])["error"] is None  # of one output


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


def test_an_optimizer_must_hold_every_trainable_parameter() -> None:
    net, other = mlp(12, 8, 6, 3, feedback="free"), mlp(12, 8, 3)
    feedback = ("free_feedback.0", "free_feedback.1")
    of_the_model = torch.optim.SGD(net.model.parameters(), lr=0.1)
    for rule in (EP(net, 5, 5, 0.1), BPTT(net, 5, 5)):
        with pytest.raises(
            ValueError, match=r"does not hold the network's free_feedback\.0, free_feedback\.1: give it"
        ):
            Trainer(rule, of_the_model)
    with pytest.raises(
        ValueError, match=r"network's model\.1\.weight, .*net\.parameters\(\), or call requires_grad_\(F"
    ):
        Trainer(EP(net, 5, 5, 0.1), torch.optim.SGD(other.parameters(), lr=0.1))

    groups = [{"params": [p]} for p in net.parameters()]
    Trainer(EP(net, 5, 5, 0.1), torch.optim.SGD(groups, lr=0.1))
    for name in feedback:
        net.get_parameter(name).requires_grad_(False)
    trainer = Trainer(EP(net, 5, 5, 0.1), of_the_model)
    before = {name: p.clone() for name, p in net.named_parameters()}
    trainer.fit(train_batches(), 1, progress=False)
    assert tuple(name for name, p in net.named_parameters() if torch.equal(p, before[name])) == feedback


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
