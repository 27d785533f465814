"""What a call of a learning rule returns, and whether its numbers are finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .spec import reference
from .spec.dynamics import Circuit


class Diverged(RuntimeError):
    """States, parameters or what is given are NaN or infinite. No parameter and no gradient has become so."""


class NotStored(Diverged):
    """A rule has stored nothing of a step, as its numbers are not finite."""


@dataclass
class StepResult:
    """What one call of a rule saw. ``output`` ``(B, classes)`` is the free phase's output units or logits, ``target``
    ``(B, classes)`` what they should be; states are lists in the order of the network's ``layers``, of ``(B, n_l)`` or,
    of convolutions, ``(B, C, H, W)`` after the pooling; ``steps`` int64 holds the number of steps made in each phase
    that was run, in order: free, +beta (random_sign: its sign), and when symmetric -beta, before it continual EP's way
    back."""

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


def refuse_not_finite(
    layers: Sequence[str],
    circuit: Circuit,
    x: Tensor,
    target: Tensor,
    ran: reference.EPResult | reference.CEPResult | reference.BPTTResult,
    learned: Sequence[Tensor] = (),
) -> None:
    """Raise NotStored, naming what it is, if a step's numbers are not finite. ``layers``: the names of those of
    ``circuit``. ``learned``: what is about to be stored;
    of the fused kernels nothing, as they have looked at it themselves, and say so by their steps.

    On a GPU their answer would have to be waited for; a Trainer asks for that of some batches at once."""
    if learned:
        is_fine = all(is_finite(tensor) for tensor in (x, target, *circuit.parameters(), *ran.free_states, *learned))
    else:
        assert not isinstance(ran, reference.BPTTResult)
        is_fine = ran.steps.is_cuda or ran.steps.tolist()[0] >= 0
    if not is_fine:
        nudged = [] if isinstance(ran, reference.BPTTResult) else ran.nudged_states
        raise NotStored(what_is_not_finite(layers, circuit, x, target, [ran.free_states, *nudged]))


def what_is_not_finite(
    layers: Sequence[str], circuit: Circuit, x: Tensor, target: Tensor, phases: Sequence[Sequence[Tensor]]
) -> str:
    """What makes a step's numbers too large, in words. ``phases``: the states at the end of each."""
    for name, given in (("the inputs hold", x), ("the target holds", target)):
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
