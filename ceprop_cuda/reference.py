"""What every kernel must compute: equilibrium propagation in plain PyTorch.

This file is the specification. It is written to be read beside the papers, runs on any device and in any
floating dtype, is differentiable, and knows nothing of the kernels.

Layers l = 0 .. L-1 count from the input. ``s[l]`` is layer l's state, ``(B, n_l)``. Connection l joins what is
below (``x`` for l = 0, else ``s[l-1]``) to layer l through ``W[l]`` ``(n_l, n_{l-1})`` and ``b[l]`` ``(n_l,)``.

References: arXiv 1905.13633 (EP in discrete time), 2005.04168 and 2005.04169 (continual EP, C-VF),
2006.03824 (symmetric nudging, cross-entropy, softmax readout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("sigmoid", "hard_sigmoid", "half_hard_sigmoid", "centered_hard_sigmoid", "tanh", "linear")


@dataclass(frozen=True)
class Dynamics:
    """How units turn their drive into their next state (see :class:`ceprop_cuda.Network` for the meaning)."""

    activation: str = "sigmoid"
    output_activation: str = "sigmoid"
    kind: str = "prototypical"  # | "energy"
    dt: float = 0.5
    clip: bool = True


@dataclass(frozen=True)
class Circuit:
    """The parameters of a chain of dense layers, with its dynamics.

    With ``readout`` the last weight and bias are R ``(classes, n_{L-1})`` and c ``(classes,)``, outside the dynamics.
    """

    weights: list[Tensor]  # W[l] (n_l, n_{l-1})
    biases: list[Tensor | None]  # b[l] (n_l,)
    free_feedback: list[Tensor] | None  # V[1], V[2], ... each shaped like W[l]; None: tied
    dynamics: Dynamics
    readout: bool = False

    @property
    def layers(self) -> int:
        return len(self.weights) - self.readout

    @property
    def feedback(self) -> list[Tensor]:
        """What carries layers 1, 2, ... back to the ones below: W[1], W[2], ... when tied, else V[1], V[2], ..."""
        return self.weights[1 : self.layers] if self.free_feedback is None else self.free_feedback

    def parameters(self) -> list[Tensor]:
        """All weights, biases and free feedback weights that exist, in this order."""
        return [p for p in (*self.weights, *self.biases, *(self.free_feedback or [])) if p is not None]


@dataclass(frozen=True)
class Nudge:
    """A pull of the output towards ``target`` ``(B, classes)`` of strength ``beta``."""

    target: Tensor
    beta: float
    at: str = "state"  # | "drive"
    loss: str = "mse"  # | "cross_entropy"


class Contrast(NamedTuple):
    """What two states of the nudged phase say about each parameter: the direction in which it should move.

    Without the readout's, unless a function says that it adds them.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]  # None where there is none
    feedback: list[Tensor]  # V[1], V[2], ...; empty when tied

    def parameters(self) -> list[Tensor]:
        """All changes that exist, in the order of :meth:`Circuit.parameters`."""
        return [dp for dp in (*self.weights, *self.biases, *self.feedback) if dp is not None]


# ---------------------------------------------------------------------------------------------------------------
# One step


def rho(name: str, x: Tensor) -> Tensor:
    """The activation ``name`` of ``x`` (any shape), by the formulas used in the papers' experiments."""
    if name == "sigmoid":
        return torch.sigmoid(4 * (x - 0.5))
    if name == "hard_sigmoid":
        return x.clamp(0, 1)
    if name == "half_hard_sigmoid":
        return (x / 2).clamp(0, 1)
    if name == "centered_hard_sigmoid":
        return x.clamp(-0.5, 0.5)
    if name == "tanh":
        return torch.tanh(x)
    if name == "linear":
        return x
    raise ValueError(f"unknown activation {name!r}")


def rho_prime(name: str, x: Tensor) -> Tensor:
    """The derivative of :func:`rho`; at a kink the slope of the unclipped side, so that a unit can leave it."""
    if name == "sigmoid":
        return 4 * rho(name, x) * (1 - rho(name, x))
    if name == "hard_sigmoid":
        return ((x >= 0) & (x <= 1)).to(x.dtype)
    if name == "half_hard_sigmoid":
        return ((x >= 0) & (x <= 2)).to(x.dtype) / 2
    if name == "centered_hard_sigmoid":
        return ((x >= -0.5) & (x <= 0.5)).to(x.dtype)
    if name == "tanh":
        return 1 - torch.tanh(x) ** 2
    if name == "linear":
        return torch.ones_like(x)
    raise ValueError(f"unknown activation {name!r}")


def activation_of(circuit: Circuit, layer: int) -> str:
    """The name of the activation of ``layer``; with a readout the top layer of the dynamics is a hidden one."""
    is_output = layer == circuit.layers - 1 and not circuit.readout
    return circuit.dynamics.output_activation if is_output else circuit.dynamics.activation


def emitted(circuit: Circuit, states: Sequence[Tensor]) -> list[Tensor]:
    """What the neighbours of each layer see: its state, or rho of it in energy dynamics."""
    if circuit.dynamics.kind == "prototypical":
        return list(states)
    return [rho(activation_of(circuit, layer), s) for layer, s in enumerate(states)]


def clamped_input(circuit: Circuit, x: Tensor) -> Tensor:
    """What layer 0 sees of the input ``x`` ``(B, n_in)``: x, or rho(x) in energy dynamics."""
    return x if circuit.dynamics.kind == "prototypical" else rho(circuit.dynamics.activation, x)


def logits(circuit: Circuit, states: Sequence[Tensor]) -> Tensor:
    """The network's answer ``(B, classes)``: the output units, or R s + c with a readout."""
    if circuit.readout:
        return F.linear(states[-1], circuit.weights[-1], circuit.biases[-1])
    return states[-1]


def output_error(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> Tensor:
    """Minus the gradient of the loss of one sample with respect to its logits, ``(B, classes)``."""
    answer = logits(circuit, states)
    return nudge.target - (answer if nudge.loss == "mse" else answer.softmax(dim=1))


def drives(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """a_l = F_l(s[l-1]) + F_{l+1}^T(s[l+1]): what reaches each layer from below and above, ``(B, n_l)``."""
    seen = [clamped_input(circuit, x), *emitted(circuit, states)]
    result = []
    for layer in range(circuit.layers):
        drive = F.linear(seen[layer], circuit.weights[layer], circuit.biases[layer])
        if layer + 1 < circuit.layers:
            drive = drive + seen[layer + 2] @ circuit.feedback[layer]
        result.append(drive)
    return result


def step(circuit: Circuit, x: Tensor, states: Sequence[Tensor], nudge: Nudge | None = None) -> list[Tensor]:
    """One synchronous step: every layer moves at once, from the states before the step.

    Prototypical  s <- rho(a);   energy  s <- clip(s + dt (-s + rho'(s) a)), without rho' at the output and in vector
    fields. The nudge adds beta e, e = y - s or y - softmax(s): after rho (``at="state"``) or before it (``"drive"``);
    a readout adds beta R^T e before it.
    """
    after = []
    for layer, (a, s) in enumerate(zip(drives(circuit, x, states), states, strict=True)):
        is_top = layer == circuit.layers - 1
        inside = outside = torch.zeros_like(a)
        if is_top and nudge is not None:
            pull = nudge.beta * output_error(circuit, states, nudge)
            if circuit.readout:
                inside = pull @ circuit.weights[-1]
            elif nudge.at == "drive":
                inside = pull
            else:
                outside = pull
        name = activation_of(circuit, layer)
        if circuit.dynamics.kind == "prototypical":
            after.append(rho(name, a + inside) + outside)
        else:
            gain = 1.0 if is_top or circuit.free_feedback is not None else rho_prime(name, s)
            moved = s + circuit.dynamics.dt * (-s + gain * a + inside + outside)
            after.append(moved.clamp(0, 1) if circuit.dynamics.clip else moved)
    return after


# ---------------------------------------------------------------------------------------------------------------
# Phases


def resting_states(circuit: Circuit, x: Tensor) -> list[Tensor]:
    """All-zero states ``(B, n_l)``, where every free phase starts."""
    return [x.new_zeros(len(x), circuit.weights[layer].shape[0]) for layer in range(circuit.layers)]


def relax(
    circuit: Circuit, x: Tensor, steps: int, states: Sequence[Tensor] | None = None, nudge: Nudge | None = None
) -> list[Tensor]:
    """``steps`` steps from ``states`` (default: rest): a free phase, or with ``nudge`` a nudged one."""
    states = resting_states(circuit, x) if states is None else [s.clone() for s in states]
    for _ in range(steps):
        states = step(circuit, x, states, nudge)
    return states


def loss(answer: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over the batch of ||y - s||^2 / 2, or of the cross-entropy; both ``(B, classes)``, result 0-d."""
    if kind == "mse":
        return ((target - answer) ** 2).sum(1).mean() / 2
    return -(target * answer.log_softmax(1)).sum(1).mean()


# ---------------------------------------------------------------------------------------------------------------
# Learning


def contrast(
    circuit: Circuit,
    x: Tensor,
    earlier: Sequence[Tensor],
    later: Sequence[Tensor],
    fixed: Sequence[Tensor],
    beta: float,
) -> Contrast:
    """The local contrast between two states, over ``beta`` and the batch size.

    Tied:  dW[l] = (r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B), r the emitted states (r[-1] the input).
    Vector field:  dW[l] = (s'[l] - s[l])^T r*[l-1] / (beta B),  dV[l] = r*[l]^T (s'[l-1] - s[l-1]) / (beta B), where
    r* are the emitted states of ``fixed``: the free state's for EP, the earlier one's for continual EP.
    The readout is no part of this: see :func:`readout_contrast`.
    """
    scale = 1 / (beta * len(x))
    seen = clamped_input(circuit, x)
    if circuit.free_feedback is None:
        r, r_later = [seen, *emitted(circuit, earlier)], [seen, *emitted(circuit, later)]
        d_weights = [
            scale * (r_later[layer + 1].T @ r_later[layer] - r[layer + 1].T @ r[layer])
            for layer in range(circuit.layers)
        ]
        d_feedback = []
        moved = [b - a for a, b in zip(r[1:], r_later[1:], strict=True)]
    else:
        r = [seen, *emitted(circuit, fixed)]
        moved = [b - a for a, b in zip(earlier, later, strict=True)]
        d_weights = [scale * (moved[layer].T @ r[layer]) for layer in range(circuit.layers)]
        d_feedback = [scale * (r[layer + 1].T @ moved[layer - 1]) for layer in range(1, circuit.layers)]
    d_biases = [None if b is None else scale * d.sum(0) for b, d in zip(circuit.biases, moved, strict=False)]
    return Contrast(d_weights, d_biases, d_feedback)


def readout_contrast(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> tuple[Tensor, Tensor | None]:
    """Minus the loss gradient of R and c at ``states``: e^T s / B and the mean of e, e = y - softmax(R s + c)."""
    error = output_error(circuit, states, nudge)
    return error.T @ states[-1] / len(error), None if circuit.biases[-1] is None else error.mean(0)


def combine(changes: Sequence[Contrast], scale: float = 1.0) -> Contrast:
    """``scale`` times the sum of ``changes``, parameter by parameter."""

    def add(parts: tuple) -> Any:
        return None if parts[0] is None else scale * sum(parts)

    lists = zip(*changes, strict=True)
    weights, biases, feedback = ([add(parts) for parts in zip(*group, strict=True)] for group in lists)
    return Contrast(weights, biases, feedback)


def share_update(change: Contrast) -> Contrast:
    """Kolen-Pollack: forward and feedback weights both get the mean of their two updates."""
    shared = [(w + v) / 2 for w, v in zip(change.weights[1:], change.feedback, strict=False)]
    weights = [change.weights[0], *shared, *change.weights[1 + len(shared) :]]
    return Contrast(weights, change.biases, [dv.clone() for dv in shared])


def with_readout(circuit: Circuit, change: Contrast, ends: Sequence[Sequence[Tensor]], nudge: Nudge) -> Contrast:
    """``change`` and, if there is a readout, the mean of its contrasts at the ``ends`` of the nudged phases."""
    if not circuit.readout:
        return change
    weights, biases = zip(*(readout_contrast(circuit, end, nudge) for end in ends), strict=True)
    mean = combine([Contrast([w], [b], []) for w, b in zip(weights, biases, strict=True)], 1 / len(ends))
    return Contrast(change.weights + mean.weights, change.biases + mean.biases, change.feedback)


class EPResult(NamedTuple):
    contrast: Contrast  # in a descent step: p.grad = -contrast
    output: Tensor  # (B, classes): the logits of the free state
    free_states: list[Tensor]
    nudged_states: list[list[Tensor]]  # the end of the phase with +beta; when symmetric also of that with -beta


def ep_step(
    circuit: Circuit,
    x: Tensor,
    nudge: Nudge,
    *,
    free_steps: int,
    nudged_steps: int,
    symmetric: bool = False,
    accumulate: bool = False,
    shared_update: bool = False,
) -> EPResult:
    """EP's estimate of minus the loss gradient: a free phase, one nudged phase or two, a contrast.

    One-sided (2005.04168): from the free state to the end of the nudged phase, over beta. Symmetric (2006.03824, third
    phase): from the end of the phase with -beta to that with +beta, over 2 beta. ``accumulate`` sums the contrasts of
    consecutive steps of the nudged phases instead, which makes a difference for vector fields only.
    """
    free = relax(circuit, x, free_steps)
    ends, path = [], []
    for signed in (nudge, replace(nudge, beta=-nudge.beta)) if symmetric else (nudge,):
        states = free
        for _ in range(nudged_steps):
            before, states = states, step(circuit, x, states, signed)
            if accumulate:
                path.append(contrast(circuit, x, before, states, before, signed.beta))
        ends.append(states)
    if accumulate:
        change = combine(path, 1 / len(ends))
    elif symmetric:
        change = contrast(circuit, x, ends[1], ends[0], free, 2 * nudge.beta)
    else:
        change = contrast(circuit, x, free, ends[0], free, nudge.beta)
    change = with_readout(circuit, change, ends, nudge)
    return EPResult(share_update(change) if shared_update else change, logits(circuit, free), free, ends)


class CEPResult(NamedTuple):
    circuit: Circuit  # with the parameters after the step
    output: Tensor  # (B, classes): the logits of the free state, by the parameters before the step
    free_states: list[Tensor]
    nudged_states: list[list[Tensor]]  # as in EPResult


def moved(circuit: Circuit, change: Contrast, lr: Sequence[float], weight_decay: float, first: int = 0) -> Circuit:
    """p <- p + lr_l (dp - weight_decay p); ``change`` speaks of connection ``first`` and those above it."""

    def move(p: Tensor, dp: Tensor, connection: int) -> Tensor:
        return p + lr[connection] * (dp - weight_decay * p)

    weights, biases, feedback = list(circuit.weights), list(circuit.biases), list(circuit.free_feedback or [])
    for c, (dw, db) in enumerate(zip(change.weights, change.biases, strict=True), first):
        weights[c] = move(weights[c], dw, c)
        b = biases[c]
        if b is not None and db is not None:
            biases[c] = move(b, db, c)
    for c, dv in enumerate(change.feedback, 1):
        feedback[c - 1] = move(feedback[c - 1], dv, c)
    return replace(
        circuit, weights=weights, biases=biases, free_feedback=None if circuit.free_feedback is None else feedback
    )


def cep_step(
    circuit: Circuit,
    x: Tensor,
    nudge: Nudge,
    *,
    free_steps: int,
    nudged_steps: int,
    lr: Sequence[float],
    symmetric: bool = False,
    shared_update: bool = False,
    weight_decay: float = 0.0,
) -> CEPResult:
    """Continual EP (2005.04168): at every nudged step t the states step with the weights of step t, then
    W <- W + lr_l (dW(s^t -> s^{t+1}) - weight_decay W), ``lr`` per connection, input side first.

    Symmetric: a phase with +beta, ``nudged_steps`` un-nudged steps back towards the free state, a phase with -beta;
    every contrast is taken over 2 (+-beta), so that their sum is EP's symmetric contrast as lr -> 0.
    A readout is outside the dynamics: it moves once, at the end, by EP's contrast for it.
    """
    free = states = relax(circuit, x, free_steps)
    output = logits(circuit, free)
    ends: list[list[Tensor]] = []
    for signed in (nudge, replace(nudge, beta=-nudge.beta)) if symmetric else (nudge,):
        if ends:
            states = relax(circuit, x, nudged_steps, states)
        for _ in range(nudged_steps):
            before, states = states, step(circuit, x, states, signed)
            change = contrast(circuit, x, before, states, before, (2 if symmetric else 1) * signed.beta)
            circuit = moved(circuit, share_update(change) if shared_update else change, lr, weight_decay)
        ends.append(states)
    of_readout = with_readout(circuit, Contrast([], [], []), ends, nudge)
    circuit = moved(circuit, of_readout, lr, weight_decay, first=circuit.layers)
    return CEPResult(circuit, output, free, ends)


class BPTTResult(NamedTuple):
    contrast: Contrast  # minus the gradients of the loss
    output: Tensor  # (B, classes): the logits of the free state
    free_states: list[Tensor]


def bptt(
    circuit: Circuit, x: Tensor, target: Tensor, loss_kind: str, *, unrolled_steps: int, states: Sequence[Tensor]
) -> BPTTResult:
    """The exact gradient of the loss ``unrolled_steps`` steps after ``states``, back to them and no further."""

    def leaf(p: Tensor) -> Tensor:
        return p.detach().requires_grad_()

    with torch.enable_grad():
        circuit = replace(
            circuit,
            weights=[leaf(w) for w in circuit.weights],
            biases=[None if b is None else leaf(b) for b in circuit.biases],
            free_feedback=None if circuit.free_feedback is None else [leaf(v) for v in circuit.free_feedback],
        )
        states = relax(circuit, x, unrolled_steps, states)
        output = logits(circuit, states)
        found = iter(torch.autograd.grad(loss(output, target, loss_kind), circuit.parameters(), materialize_grads=True))
    change = Contrast(
        [-next(found) for _ in circuit.weights],
        [None if b is None else -next(found) for b in circuit.biases],
        [-next(found) for _ in circuit.free_feedback or []],
    )
    return BPTTResult(change, output.detach(), [s.detach() for s in states])
