"""What an epoch comes to, and the watch over its states."""

from __future__ import annotations

import torch
from torch import Tensor

from ..networks import Network
from ..records import Diverged, StepResult, what_is_not_finite
from ..spec import reference
from .moving import Learned

DIGITS = 7  # of a loss, as many as float32 has


class Tally:
    """Sums over an epoch, kept on the network's device, and the watch over its states.

    Batches are counted and looked at some at a time: reading a number waits for the device, and even on the CPU a
    small network's step takes less time than the eight operations on single numbers that counting it does.
    """

    BATCHES = 16  # at a time; their states are kept until then

    def __init__(self, net: Network, where: str) -> None:
        device = net.weights[0].device
        self._net = net
        self._where = where
        self._pending: list[tuple[Tensor, StepResult]] = []
        self._batches = 0
        self._samples = 0
        self._has_classes = torch.ones((), dtype=torch.bool, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._wrong = torch.zeros((), dtype=torch.int64, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # as many as there are phases, once known

    def add(self, x: Tensor, out: StepResult) -> None:
        """Count the batch ``x``, of which a rule saw ``out``.

        Raises Diverged if states of this or one of the batches before it, which it names, are not finite.
        """
        _ = out.target  # of class indices made now: who gave them may write others there for the next batch
        self._pending.append((x, out))
        if len(self._pending) == self.BATCHES:
            self._count()

    def add_learned(self, learned: Learned, samples: int, has_classes: bool) -> None:
        """Count batches that hold ``samples`` in all, from which a rule has learned in one call."""
        self._count()
        self._batches += len(learned.loss)
        self._samples += samples
        self._loss += (learned.loss.sum() * (samples // len(learned.loss))).to(self._loss)
        self._wrong += learned.wrong.sum()
        self._has_classes &= has_classes
        self._steps = self._steps + learned.steps.sum(0)

    def means(self) -> tuple[float, float | None]:
        """Mean loss, and wrongly classified samples in percent, None where the targets are no classes; ValueError if
        there was no sample; or Diverged."""
        self._count()
        if self._samples == 0:
            raise ValueError("there is no batch to train or test on")
        error = 100 * self._wrong.item() / self._samples if self._has_classes.item() else None
        # Rounded: the last digits depend on how many batches are counted at once.
        return float(f"{self._loss.item() / self._samples:.{DIGITS}g}"), error

    def mean_steps(self) -> list[float]:
        """Steps of each phase, mean over the batches that :meth:`means` has seen."""
        return [steps / self._batches for steps in self._steps.tolist()]

    def last_batch(self) -> str:
        """Where the last batch that was counted stands."""
        return f"{self._where}, batch {self._batches}"

    def _count(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        # A NaN or an infinity survives the sum. So may an overflow of finite numbers, which the search for the batch
        # then finds to be none.
        seen = [s.flatten() for _, out in pending for s in (*_all_states(out), out.target)]
        steps = torch.stack([out.steps for _, out in pending])
        suspicious = not (torch.cat(seen).sum().isfinite() & (steps.min() >= 0))
        for x, out in pending:
            self._batches += 1
            if suspicious:
                _refuse_bad_states(self.last_batch(), self._net, x, out)
        output, target = (torch.cat([getattr(out, name) for _, out in pending]) for name in ("output", "target"))
        self._samples += len(output)
        self._loss += reference.loss(output.double(), target.double(), pending[0][1].loss_kind) * len(output)
        self._wrong += (output.argmax(1) != target.argmax(1)).sum()
        self._has_classes &= are_classes(target)
        self._steps = self._steps + steps.sum(0)


def are_classes(target: Tensor) -> Tensor:
    """Whether targets ``(B, classes)`` are one-hot, and of more than one class: of others, the largest output says
    nothing. 0-d, which waits for no device."""
    is_one_hot = ((target == 0) | (target == 1)).all() & (target.sum(1) == 1).all()
    return is_one_hot & (target.shape[1] > 1)


def summary_of(loss: float, error: float | None, test_error: float | None = None) -> str:
    text = f"loss {loss:.4g}" if error is None else f"loss {loss:.4g}, error {error:.2f} %"
    return text if test_error is None else f"{text}, test error {test_error:.2f} %"


def _all_states(out: StepResult) -> list[Tensor]:
    return [*out.free_states, *out.nudged_states, *out.nudged_minus_states]


def _refuse_bad_states(where: str, net: Network, x: Tensor, out: StepResult) -> None:
    """Raise Diverged if what was given or a state is not finite, or a GPU's kernels have stored nothing of the step."""
    numbers = [x, out.target, *_all_states(out)]
    if out.steps.min() < 0 or not all(number.isfinite().all() for number in numbers):
        raise Diverged(f"{where}: {what_is_not_finite(net.layers, net.circuit(), x, out)}")
