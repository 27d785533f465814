"""What a call of a learning rule returns, and whether its numbers are finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .spec import reference
from .spec.dynamics import Circuit
from .validate import dense_target


class Diverged(RuntimeError):
    """States, parameters or what is given are NaN or infinite. No parameter and no gradient has become so."""


class NotStored(Diverged):
    """A rule has stored nothing of a step, as its numbers are not finite."""


class _DenseWhenAsked:
    """A target that may be given as class indices. It becomes dense when first asked for: few callers do, and it takes
    a part of a small network's step."""

    def __get__(self, result: StepResult, owner: type | None = None) -> Tensor:
        given = vars(result)
        given["target"] = dense_target(given["target"], result.output, result.output.shape[1])
        return given["target"]

    def __set__(self, result: StepResult, target: Tensor) -> None:
        vars(result)["target"] = target


@dataclass
class StepResult:
    """What one call of a rule saw. ``output`` ``(B, classes)`` is the free phase's output units or logits, ``target``
    ``(B, classes)`` what they should be, of class indices made when first asked for, so that indices must not be
    overwritten before; states are lists in the order of the network's ``layers``, of ``(B, n_l)`` or, of convolutions,
    ``(B, C, H, W)`` after the pooling; ``steps`` int64 holds the number of steps made in each phase that was run, in
    order: free, +beta (random_sign: its sign), and when symmetric -beta, before it continual EP's way back."""

    loss_kind: str  # "mse" or "cross_entropy"
    target: Tensor
    output: Tensor
    free_states: list[Tensor]
    steps: Tensor
    nudged_states: list[Tensor] = field(default_factory=list)  # end of the phase with +beta (random_sign: its sign)
    nudged_minus_states: list[Tensor] = field(default_factory=list)  # end of the phase with -beta, when symmetric

    @cached_property
    def loss(self) -> Tensor:
        """The free phase's loss, mean over the batch, 0-d. Computed when first asked for: a small network's step takes
        little longer."""
        return reference.loss(self.output, self.target, self.loss_kind)


StepResult.target = _DenseWhenAsked()  # type: ignore[assignment]


def refuse_not_finite(
    layers: Sequence[str],
    circuit: Circuit,
    x: Tensor,
    out: StepResult,
    learned: Sequence[Tensor] = (),
) -> None:
    """Raise NotStored, naming what it is, if a step's numbers are not finite. ``layers``: the names of those of
    ``circuit``. ``learned``: what is about to be stored;
    of the fused kernels nothing, as they have looked at it themselves, and say so by their steps.

    On a GPU their answer would have to be waited for; a Trainer asks for that of some batches at once."""
    if learned:
        seen = (x, out.target, *circuit.parameters(), *out.free_states, *learned)
        is_fine = all(is_finite(tensor) for tensor in seen)
    else:
        is_fine = out.steps.is_cuda or out.steps.tolist()[0] >= 0
    if not is_fine:
        raise NotStored(what_is_not_finite(layers, circuit, x, out))


def what_is_not_finite(layers: Sequence[str], circuit: Circuit, x: Tensor, out: StepResult) -> str:
    """What makes a step's numbers too large, in words."""
    phases = [phase for phase in (out.free_states, out.nudged_states, out.nudged_minus_states) if phase]
    for name, given in (("the inputs hold", x), ("the target holds", out.target)):
        if not given.isfinite().all():
            return f"{name} NaN or infinite values"
        if not is_finite(given):
            return f"{name} values up to {given.abs().max().item():.2g}, of which products are not finite"
    bad = [
        f"states of layer {name}"
        for layer, name in enumerate(layers)
        if not all(is_finite(states[layer]) for states in phases)
    ]
    bad += bad_parameters(circuit)
    return f"{', '.join(bad) or 'what states teach'} are not finite (learning rate too high?)"


def bad_parameters(circuit: Circuit) -> list[str]:
    """The parameters that are not finite, in words."""
    feedback = zip(circuit.structure.inner, circuit.free_feedback or (), strict=False)
    groups: tuple[tuple[str, Iterable[tuple[int, Tensor | None]]], ...] = (
        ("weights", enumerate(circuit.weights)),
        ("biases", enumerate(circuit.biases)),
        ("feedback weights", feedback),
    )
    return [
        f"{name} of connection {connection}"
        for name, parameters in groups
        for connection, p in parameters
        if p is not None and not is_finite(p)
    ]


def is_finite(tensor: Tensor) -> bool:
    """Whether products of two of its numbers are, too: as csrc/cpu/sanity.h has it."""
    limit = 2.0**56 if tensor.dtype == torch.float32 else 2.0**500
    return bool((tensor.detach().abs() <= limit).all())
