"""How public code for EP on ConvNets makes a step: autograd of the primitive function by all states at once.

Phi = sum_l s[l] . F_l(s[l-1]) is written with torch's layers; its gradient by the states is every layer's drive,
that by the parameters what they learn from. Prototypical dynamics, tied weights, squared error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import connections
from ..spec.dynamics import Circuit, Nudge, activation_of, output_error, rho
from ..spec.reference import PerParameter


def phi(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Summed over the batch."""
    terms = [
        (above * connections.forward(u, w, b, c.convolution)).sum()
        for u, above, w, b, c in zip(
            [x, *states[:-1]], states, circuit.weights, circuit.biases, circuit.connections, strict=True
        )
    ]
    return torch.stack(terms).sum()


def step(circuit: Circuit, x: Tensor, states: Sequence[Tensor], nudge: Nudge | None = None) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [s.detach().requires_grad_() for s in states]
        drives = list(torch.autograd.grad(phi(circuit, x, leaves), leaves))
    if nudge is not None and nudge.at == "drive":
        drives[-1] = drives[-1] + nudge.beta * output_error(circuit, states, nudge)
    after = [rho(activation_of(circuit, layer), a) for layer, a in enumerate(drives)]
    if nudge is not None and nudge.at == "state":
        after[-1] = after[-1] + nudge.beta * output_error(circuit, states, nudge)
    return after


def contrast(
    circuit: Circuit, x: Tensor, earlier: Sequence[Tensor], later: Sequence[Tensor], beta: float
) -> PerParameter:
    """The derivative of (Phi(later) - Phi(earlier)) / (beta B) by the parameters."""
    parameters = circuit.parameters()
    with torch.enable_grad():
        for p in parameters:
            p.requires_grad_()
        difference = (phi(circuit, x, later) - phi(circuit, x, earlier)) / (beta * len(x))
        found = iter(torch.autograd.grad(difference, parameters))
    for p in parameters:
        p.requires_grad_(False)
    return PerParameter(
        [next(found) for _ in circuit.weights], [None if b is None else next(found) for b in circuit.biases], []
    )


def gradients(circuit: Circuit, x: Tensor, free: list[Tensor], nudged: list[Tensor], beta: float) -> PerParameter:
    """EP's estimate: minus the contrast of the two states."""
    return contrast(circuit, x, free, nudged, -beta)


def learning_step(
    circuit: Circuit, x: Tensor, states: list[Tensor], nudge: Nudge, lr: Sequence[float]
) -> tuple[list[Tensor], Circuit]:
    """A nudged step of continual EP, in which the parameters of ``circuit`` move in place."""
    after = step(circuit, x, states, nudge)
    change = contrast(circuit, x, states, after, nudge.beta)
    for parameters, changes in ((circuit.weights, change.weights), (circuit.biases, change.biases)):
        for p, dp, rate in zip(parameters, changes, lr, strict=True):
            if p is not None and dp is not None:
                p.add_(dp, alpha=rate)
    return after, circuit
