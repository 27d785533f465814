"""Training over epochs, and what it measures."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from ..arguments.checks import folder_path, whole_number
from ..data import Batches
from ..networks import Network
from ..output.messages import has_bar, has_stderr, say
from ..records import Diverged, NotStored, StepResult, bad_parameters
from ..run_directory import GeneratorState, Metrics, RunDirectory, json_values
from .in_calls import learn_in_calls, takes_calls
from .rule import Rule
from .tally import Tally, summary_of


class Trainer:
    """Runs a learning rule over epochs of batches.

    Args:
        rule: an EP or BPTT rule, which computes gradients, CEP or an EP rule with ``lr=``, which move the weights
            themselves, or one of your own, see :class:`ceprop_cuda.Rule`.
        optimizer: steps after every batch of a rule that computes gradients, on every parameter of the network that
            requires grad; None for others. One that takes no closure: not LBFGS.
        scheduler: of the learning rates of ``optimizer``, or of ``rule.optimizer``, stepped after every epoch; any that
            needs no metric.

    Raises ValueError or TypeError if these do not go together.
    """

    def __init__(
        self,
        rule: Rule,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        name = type(rule).__name__
        if not isinstance(rule, Rule):
            raise TypeError(
                f"rule must be an EP, CEP or BPTT, got {name}; one of your own derives from ceprop_cuda.Rule"
            )
        if rule.moves_parameters:
            if optimizer is not None and optimizer is not rule.optimizer:
                raise ValueError(f"{name} moves the weights itself: it takes no optimizer")
            optimizer = rule.optimizer
        elif not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{name} only computes gradients: it needs a torch.optim optimizer, got {optimizer!r}")
        else:
            _refuse_closures(optimizer)
            _refuse_left_out_parameters(rule.net, optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError("scheduler must step without a metric, got ReduceLROnPlateau")
        if scheduler is not None and scheduler.optimizer is not optimizer:
            whose = f"rule.optimizer, as {name} moves the weights itself" if rule.moves_parameters else "optimizer="
            raise ValueError(f"scheduler must be that of {whose}, got one of another optimizer")
        self.rule = rule
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._known: list[Tensor] = []  # the parameters that the optimizer has been seen to hold

    def fit(
        self,
        train_batches: Iterable[Sequence[Tensor]],
        epochs: int,
        test: Iterable[Sequence[Tensor]] | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
        progress: bool | None = None,
    ) -> list[Metrics]:
        """Train until ``epochs`` epochs are done.

        Args:
            train_batches: batches ``(x, y)`` for the rule, iterated once per epoch: :class:`ceprop_cuda.data.Batches`,
                a DataLoader, a list.
            epochs: number of epochs, those done before a resume included.
            test: batches to measure the test error on after every epoch.
            out: run directory, this process's own until the end. Holds after every epoch checkpoint.pt (for
                ``torch.load(weights_only=True)``), metrics.jsonl, a line for each, and config.json, and every few
                seconds and at the end curves.png; a kill at any moment leaves them fit to resume.
            resume: go on from ``out``'s checkpoint. The result is bitwise that of an uninterrupted run if the orders of
                ``train_batches`` come from their ``state_dict()``, their ``generator`` or torch's global CPU generator.
            config: what the run is, as JSON values, NumPy's numbers included. Stored in config.json beside "epochs",
                "rule" (the learning rule with its settings, the network's dynamics and dtype) and "versions"; a resumed
                run must give the same, and train by the same rule.
            progress: show a bar on stderr. None: where it is a terminal or a notebook.

        Returns:
            One dict per epoch: "epoch" (from 1), "train_error" and "test_error" in percent (None where the targets are
            no classes, one-hot or by index, and test_error without ``test``), "train_loss", "seconds" of training,
            without the test, and "steps", how many steps each phase of a training step took, in the order of
            :class:`StepResult`'s, mean over the batches. Training error and loss are those of the free phases of the
            training steps.

        Raises:
            FileExistsError: ``out`` holds a run with a finished epoch, or files of something else, and ``resume`` is
                False. Nothing was changed.
            FileNotFoundError: there is no checkpoint to resume from. Nothing was changed.
            BlockingIOError: another process is training in ``out``. Nothing was changed.
            OSError: a file cannot be read or written, e.g. because the disk is full. The last checkpoint is whole.
            ValueError, TypeError: an argument is wrong or does not fit the checkpoint, or that is damaged, or
                config.json was edited, and nothing was changed; or there is no batch, or one that does not fit the
                network.
            Diverged: states or parameters are no longer finite.
            Whatever ends the training once it has begun, the network and the optimizer stay as the last batch left
            them, and ``out``'s checkpoint as the last finished epoch did: ``resume`` goes on from there, and brings the
            other files up to date if they were just being written. Before the first epoch is finished a new run may
            take ``out`` as well.
        """
        epochs = whole_number("epochs", epochs, 1)
        progress = has_bar() if progress is None else progress and has_stderr()
        for name, batches in (("train_batches", train_batches), ("test", test)):
            _refuse_what_has_no_batches(name, batches)
        if resume and out is None:
            raise ValueError("resume=True needs out=, the run directory to go on from")
        if out is not None and getattr(train_batches, "persistent_workers", False):
            raise ValueError(
                "a DataLoader with persistent_workers=True cannot be resumed: its workers' random numbers are in no "
                "checkpoint. Leave persistent_workers or out= out"
            )
        self._refuse_another_network()
        described = json_values("config", {} if config is None else config)
        plan = {"epochs": epochs, "config": described, "rule": json_values("rule", _description(self.rule))}
        run = None if out is None else RunDirectory(folder_path("out", out))
        parts = self._parts(train_batches)
        if run is not None and resume:
            run.refuse_if_none()
        with nullcontext() if run is None else run.locked():
            history = [] if run is None else run.begin(plan, parts, resume)
            for epoch in range(len(history) + 1, epochs + 1):
                history.append(self._epoch(train_batches, test, epoch, epochs, progress))
                if run is not None:
                    run.save(plan, history, parts)
        return history

    def evaluate(self, batches: Iterable[Sequence[Tensor]]) -> dict[str, float | None]:
        """The free phase's "loss", mean over the samples, and "error" in percent on ``batches`` of ``(x, y)``; the
        error is None where the targets are no classes.

        Raises Diverged if states are not finite, ValueError if there is no batch.
        """
        return self._evaluate(batches, "evaluation")

    def _evaluate(self, batches: Iterable[Sequence[Tensor]], where: str) -> dict[str, float | None]:
        tally = Tally(self.rule.net, where)
        for number, batch in enumerate(batches, 1):
            x, y = _pair(batch, f"{where}, batch {number}")
            tally.add(x, self.rule.predict(x, y))
        loss, error = tally.means()
        return {"loss": loss, "error": error}

    def _epoch(
        self,
        train_batches: Iterable[Sequence[Tensor]],
        test: Iterable[Sequence[Tensor]] | None,
        epoch: int,
        epochs: int,
        progress: bool,
    ) -> Metrics:
        tally = Tally(self.rule.net, f"epoch {epoch}")
        shown = began = time.perf_counter()
        total = len(train_batches) if isinstance(train_batches, Sized) else None
        with tqdm(desc=f"epoch {epoch}/{epochs}", total=total, unit="batch", disable=not progress) as bar:
            for batches in self._learned(train_batches, tally, f"epoch {epoch}"):
                bar.update(batches)
                if progress and time.perf_counter() - shown > 0.5:  # reading the tally waits for the device
                    bar.set_postfix_str(summary_of(*tally.means()))
                    shown = time.perf_counter()
            loss, error = tally.means()
            seconds = time.perf_counter() - began
            if bad := bad_parameters(self.rule.net.circuit()):
                raise Diverged(f"{tally.last_batch()}: {', '.join(bad)} are not finite (learning rate too high?)")
            if self.scheduler is not None:
                self.scheduler.step()
            test_error = None if test is None else self._evaluate(test, f"test after epoch {epoch}")["error"]
            summary = summary_of(loss, error, test_error)
            bar.set_postfix_str(summary)
        say(f"epoch {epoch}/{epochs}: {summary}, {seconds:.1f} s")
        return {
            "epoch": epoch,
            "train_error": error,
            "test_error": test_error,
            "train_loss": loss,
            "seconds": seconds,
            "steps": tally.mean_steps(),
        }

    def _learned(self, batches: Iterable[Sequence[Tensor]], tally: Tally, where: str) -> Iterator[int]:
        """Learns from all batches, and says from how many since the last time."""
        if isinstance(batches, Batches) and takes_calls(self.rule, batches):
            yield from learn_in_calls(self.rule, batches, tally, where)
            return
        for number, batch in enumerate(batches, 1):
            x, y = _pair(batch, f"{where}, batch {number}")
            try:
                tally.add(x, self._learn(x, y))
            except NotStored as refusal:
                raise Diverged(f"{where}, batch {number}: {refusal}") from None
            yield 1

    def _learn(self, x: Tensor, y: Tensor) -> StepResult:
        if self.rule.moves_parameters:
            return self.rule.step(x, y)
        assert self.optimizer is not None  # __init__ has seen to it
        self._refuse_other_parameters(self.optimizer)
        self.rule.net.zero_grad()
        out = self.rule.backward(x, y)
        self.optimizer.step()
        return out

    def _refuse_another_network(self) -> None:
        """Raise ValueError if nothing would learn, or an earlier parameter would, or a setting is wrong."""
        self.rule.refuse_wrong_settings()
        if not any(p.requires_grad for p in self.rule.net.parameters()):
            raise ValueError("no parameter of the network requires grad, so there is nothing to learn")
        if self.optimizer is not None and not self.rule.moves_parameters:
            _refuse_left_out_parameters(self.rule.net, self.optimizer)

    def _refuse_other_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ValueError if parameters were replaced, so that the optimizer would step on the old ones."""
        parameters = self.rule.net.circuit().parameters()
        if len(parameters) != len(self._known) or any(p is not q for p, q in zip(parameters, self._known, strict=True)):
            _refuse_left_out_parameters(self.rule.net, optimizer)
            self._known = parameters

    def _parts(self, batches: Iterable[Sequence[Tensor]]) -> dict[str, Any]:
        """Everything with a state of its own, by its name in the checkpoint; None where there is no such part."""
        order: Any = batches if hasattr(batches, "state_dict") else None
        generator = getattr(batches, "generator", None)
        if order is None and isinstance(generator, torch.Generator):
            order = GeneratorState(generator)
        return {
            "optimizer": self.optimizer,  # first, because it refuses a state that does not fit before it changes
            "scheduler": self.scheduler,
            "train_batches": order,
            "network": self.rule.net,
        }


def _refuse_what_has_no_batches(name: str, batches: object) -> None:
    """Before anything is written."""
    if isinstance(batches, Iterator):
        raise TypeError(f"{name} is iterated once per epoch, got an iterator, which ends after the first")
    if isinstance(batches, (Tensor, Mapping)):
        raise TypeError(f"{name} must give batches (x, y), got a {type(batches).__name__}: a list of them, [(x, y)]?")
    if isinstance(batches, (list, tuple)) and batches:
        if all(isinstance(part, Tensor) for part in batches):
            raise TypeError(f"{name} must give batches (x, y), got tensors alone: a list of them, [(x, y)]?")
        _pair(batches[0], f"{name}[0], the first batch")


def _pair(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    """``batch`` as x and y."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        got = f"a mapping with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, (tuple, list)):
        got = f"{len(batch)} parts"
    else:
        got = f"a {type(batch).__name__}"
    raise TypeError(f"{where} must be a pair (x, y), got {got}: map what your loader gives to such pairs")


def _refuse_closures(optimizer: torch.optim.Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__} evaluates the loss several times a step, by a closure, which learning rules "
            "have none of: take an optimizer that steps once"
        )


def _refuse_left_out_parameters(net: Network, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in net.named_parameters() if p.requires_grad and id(p) not in held]
    if left_out:
        raise ValueError(
            f"the optimizer does not hold the network's {', '.join(left_out)}: give it the parameters of the whole "
            "network, net.parameters(), or call requires_grad_(False) on those that shall stay as they are"
        )


def _description(rule: Rule) -> dict[str, Any]:
    """What is trained and how, beyond the values of parameters; what runs it may change between epochs."""
    dtype = str(rule.net.weights[0].dtype).removeprefix("torch.")
    return {"name": type(rule).__name__, **rule.settings(), "network": rule.net.extra_repr(), "dtype": dtype}
