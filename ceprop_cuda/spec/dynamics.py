"""The units of a network and one step of them, in plain PyTorch: the first half of the specification.

The second half, phases and learning, is ``reference.py`` and ``gates.py``; losses are in ``losses.py``. This file is
written to be read beside the papers, runs on any device and in any floating dtype, is differentiable, and knows nothing
of the kernels.

``s[l]`` is the state of layer l, ``(B, n_l)`` or ``(B, C, H, W)``. Connection e joins what is below it, the input ``x``
or a layer, to the layer above it through ``W[e]`` and ``b[e]``. Together they make the primitive function

    Phi = sum over e of s[above(e)] . F_e(s[below(e)])

whose derivative by s[l] is the drive of layer l. In a chain connection l joins layer l - 1 to layer l.

References: arXiv 1905.13633 (EP in discrete time), 2005.04168 and 2005.04169 (C-VF), 2006.03824 (nudging inside rho,
cross-entropy, softmax readout), 2312.15103 (asynchronous steps).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import connections, losses
from .connections import INPUT, Connection, Structure


class Activation(NamedTuple):
    rho: Callable[[Tensor], Tensor]
    rho_prime: Callable[[Tensor], Tensor]


def _steep_sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(4 * (x - 0.5))


def _clipped(low: float, high: float, slope: float = 1.0) -> Activation:
    """clip(slope x, low, high); at a kink its derivative is the slope of the unclipped side, so that a unit can leave
    it."""

    def line(x: Tensor) -> Tensor:
        return x if slope == 1 else slope * x

    return Activation(
        lambda x: line(x).clamp(low, high), lambda x: line(((line(x) >= low) & (line(x) <= high)).to(x.dtype))
    )


BY_NAME = {
    "sigmoid": Activation(_steep_sigmoid, lambda x: 4 * _steep_sigmoid(x) * (1 - _steep_sigmoid(x))),
    "hard_sigmoid": _clipped(0, 1),
    "half_hard_sigmoid": _clipped(0, 1, slope=0.5),
    "centered_hard_sigmoid": _clipped(-0.5, 0.5),
    "tanh": Activation(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "linear": Activation(lambda x: x, torch.ones_like),
    "relu": _clipped(0, math.inf),
    "relu6": _clipped(0, 6),
}
ACTIVATIONS = tuple(BY_NAME)


def rho(name: str, x: Tensor) -> Tensor:
    """The activation ``name`` of ``x`` (any shape), by the formulas used in the papers' experiments."""
    return BY_NAME[name].rho(x)


def rho_prime(name: str, x: Tensor) -> Tensor:
    """The derivative of :func:`rho`."""
    return BY_NAME[name].rho_prime(x)


@dataclass(frozen=True)
class Dynamics:
    """How units turn their drive into their next state (see :class:`ceprop_cuda.Network` for the meaning)."""

    activation: str = "sigmoid"
    output_activation: str = "sigmoid"
    kind: str = "prototypical"  # | "energy"
    dt: float = 0.2
    clip: bool = True
    schedule: str = "synchronous"  # | "asynchronous"


@dataclass(frozen=True)
class Circuit:
    """The parameters of a network, by connection of its structure, with its dynamics."""

    # W[e] (n_above, n_below), of a convolution (n_above, n_below, kernel height, kernel width), of a readout R
    # (classes, n)
    weights: list[Tensor]
    biases: list[Tensor | None]  # b[e] (n_above,), of a readout c (classes,)
    free_feedback: list[Tensor] | None  # V[e] of the inner connections, each shaped like W[e]; None: tied
    dynamics: Dynamics
    structure: Structure

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those of the dynamics, over which Phi sums: all but a readout, which is the last one."""
        return self.structure.moving

    @property
    def layers(self) -> int:
        """The number of layers with states."""
        return self.structure.layers

    @property
    def output(self) -> int:
        """The layer that is nudged: the output layer, or the one that the readout reads."""
        return self.structure.output

    @property
    def classes(self) -> int:
        """The number of output units, or of the readout's classes."""
        return self.weights[self.structure.answering].shape[0]

    def feedback(self, connection: int) -> Tensor:
        """What carries the layer above an inner ``connection`` back to the one below: W[e] when tied, else V[e]."""
        if self.free_feedback is None:
            return self.weights[connection]
        return self.free_feedback[self.structure.inner.index(connection)]

    def parameters(self) -> list[Tensor]:
        """All weights, biases and free feedback weights that exist, in this order."""
        return [p for p in (*self.weights, *self.biases, *(self.free_feedback or [])) if p is not None]

    def leaves(self) -> Circuit:
        """The same circuit with parameters of its own for autograd, which share their numbers with these."""

        def leaf(p: Tensor) -> Tensor:
            return p.detach().requires_grad_()

        return replace(
            self,
            weights=[leaf(w) for w in self.weights],
            biases=[None if b is None else leaf(b) for b in self.biases],
            free_feedback=None if self.free_feedback is None else [leaf(v) for v in self.free_feedback],
        )


@dataclass(frozen=True)
class Nudge:
    """A pull of the output towards ``target`` ``(B, classes)`` of strength ``beta``; the kernels take class indices
    ``(B,)`` as well."""

    target: Tensor
    beta: float
    at: str = "state"  # | "drive"
    loss: str = "mse"  # one of losses.LOSSES


def activation_of(circuit: Circuit, layer: int) -> str:
    """The name of the activation of ``layer``; with a readout all layers are hidden ones."""
    is_output = layer == circuit.output and not circuit.structure.has_readout
    return circuit.dynamics.output_activation if is_output else circuit.dynamics.activation


def emitted(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """What the neighbours see of the input ``x`` and of each layer, in this order: x and the states, or
    rho of them in energy dynamics."""
    if circuit.dynamics.kind == "prototypical":
        return [x, *states]
    sent = [rho(activation_of(circuit, layer), s) for layer, s in enumerate(states)]
    return [rho(circuit.dynamics.activation, x), *sent]


def logits(circuit: Circuit, states: Sequence[Tensor]) -> Tensor:
    """The network's answer ``(B, classes)``: the output units, or R s + c with a readout."""
    if circuit.structure.has_readout:
        return F.linear(states[circuit.output].flatten(1), circuit.weights[-1], circuit.biases[-1])
    return states[circuit.output]


def output_error(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> Tensor:
    """Minus the gradient of the loss of one sample with respect to its logits, ``(B, classes)``."""
    return losses.BY_NAME[nudge.loss].error(logits(circuit, states), nudge.target)


def from_below(circuit: Circuit, seen: Sequence[Tensor], connection: int) -> Tensor:
    """F_e(s[below(e)]), shaped like the state of the layer above."""
    c = circuit.connections[connection]
    return connections.forward(
        seen[c.below + 1], circuit.weights[connection], circuit.biases[connection], c.convolution
    )


def from_above(circuit: Circuit, seen: Sequence[Tensor], connection: int) -> Tensor:
    """F_e^T(s[above(e)]; s[below(e)]), shaped like the state of the layer below."""
    c = circuit.connections[connection]
    bias = circuit.biases[connection] if circuit.free_feedback is None else None
    return connections.transpose(
        seen[c.above + 1], circuit.feedback(connection), bias, c.convolution, seen[c.below + 1]
    )


def from_input(circuit: Circuit, seen: Sequence[Tensor]) -> dict[int, Tensor]:
    """F_e(x) of every connection from the input, which no step changes, by connection."""
    return {e: from_below(circuit, seen, e) for e, c in enumerate(circuit.connections) if c.below == INPUT}


def drive(circuit: Circuit, seen: Sequence[Tensor], layer: int, known: Mapping[int, Tensor] | None = None) -> Tensor:
    """a_l = dPhi/ds[l], the sum of F_e(s[below(e)]) over the connections that end at ``layer`` and of
    F_e^T(s[above(e)]; s[l]) over those that start there: shaped like its state, if it and its neighbours send ``seen``,
    as :func:`emitted` returns it. ``known`` is what :func:`from_input` returns, if the caller has it."""
    below, above = drive_parts(circuit, seen, layer, known)
    return reduce(operator.add, [*below.values(), *above.values()])


def drive_parts(
    circuit: Circuit, seen: Sequence[Tensor], layer: int, known: Mapping[int, Tensor] | None = None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The terms of :func:`drive`, by connection: of those that end at ``layer``, and of those that start there."""
    known = known or {}
    edges = list(enumerate(circuit.connections))
    below = {e: known[e] if e in known else from_below(circuit, seen, e) for e, c in edges if c.above == layer}
    above = {e: from_above(circuit, seen, e) for e, c in edges if c.below == layer}
    return below, above


def phi(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> Tensor:
    """The primitive function of each sample ``(B,)``, in energy dynamics of rho of the input and of the states. With
    tied feedback its derivative by what a layer sends is the layer's drive."""
    seen = emitted(circuit, x, states)
    terms = [
        (seen[c.above + 1] * from_below(circuit, seen, e)).flatten(1).sum(1) for e, c in enumerate(circuit.connections)
    ]
    return reduce(operator.add, terms)


def energy(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> Tensor:
    """What energy dynamics with tied feedback descend, of each sample ``(B,)``: sum of s^2 / 2 minus Phi of rho(s)."""
    return reduce(operator.add, [(s**2).flatten(1).sum(1) / 2 for s in states]) - phi(circuit, x, states)


class Push(NamedTuple):
    """What moves a layer in a step; every tensor is shaped like its state."""

    below: dict[int, Tensor]  # the terms of its drive by connection: of those that end at it
    above: dict[int, Tensor]  # and of those that start there
    drive: Tensor  # their sum
    inside: Tensor  # what a nudge adds before rho
    outside: Tensor  # and after it


def push(
    circuit: Circuit,
    seen: Sequence[Tensor],
    states: Sequence[Tensor],
    layer: int,
    nudge: Nudge | None,
    known: Mapping[int, Tensor] | None = None,
) -> Push:
    """What moves ``layer`` from its own state in ``states``, where its neighbours send ``seen``.

    The nudge adds beta e, e = y - s or y - softmax(s): after rho (``at="state"``) or before it (``"drive"``); a readout
    adds beta R^T e before it.
    """
    below, above = drive_parts(circuit, seen, layer, known)
    a = reduce(operator.add, [*below.values(), *above.values()])
    inside = outside = torch.zeros_like(a)
    if layer == circuit.output and nudge is not None:
        pull = nudge.beta * output_error(circuit, states, nudge)
        if circuit.structure.has_readout:
            inside = (pull @ circuit.weights[-1]).view_as(a)
        elif nudge.at == "drive":
            inside = pull
        else:
            outside = pull
    return Push(below, above, a, inside, outside)


def next_state(circuit: Circuit, s: Tensor, layer: int, by: Push) -> Tensor:
    """Where ``layer`` moves from its state ``s``.

    Prototypical  s <- rho(a);   energy  s <- clip(s + dt (-s + rho'(s) a)), without rho' at the output and in vector
    fields.
    """
    name = activation_of(circuit, layer)
    if circuit.dynamics.kind == "prototypical":
        return rho(name, by.drive + by.inside) + by.outside
    gain = 1.0 if layer == circuit.output or circuit.free_feedback is not None else rho_prime(name, s)
    moved = s + circuit.dynamics.dt * (-s + gain * by.drive + by.inside + by.outside)
    return moved.clamp(0, 1) if circuit.dynamics.clip else moved


def step(
    circuit: Circuit,
    x: Tensor,
    states: Sequence[Tensor],
    nudge: Nudge | None = None,
    known: Mapping[int, Tensor] | None = None,
    pushes: dict[int, Push] | None = None,
) -> list[Tensor]:
    """One step, in which every layer moves once; ``known`` as for :func:`drive`. What moved each layer is noted in
    ``pushes``, if there is one.

    The layers of a turn move at once, from the states before the turn, those of the next one from the newest states of
    their neighbours. Synchronous: one turn. Asynchronous (2312.15103): two, of a chain the layers 0, 2, ... and then
    1, 3, .... All have the same fixed points.
    """
    states = list(states)
    for turn in circuit.structure.scheduled_turns(circuit.dynamics.schedule):
        seen = emitted(circuit, x, states)
        moved = []
        for layer in turn:
            by = push(circuit, seen, states, layer, nudge, known)
            moved.append(next_state(circuit, states[layer], layer, by))
            if pushes is not None:
                pushes[layer] = by
        for layer, s in zip(turn, moved, strict=True):
            states[layer] = s
    return states


def resting_states(circuit: Circuit, x: Tensor) -> list[Tensor]:
    """All-zero states ``(B, n_l)`` or ``(B, n_l, H, W)``, where every free phase starts."""
    return [x.new_zeros(len(x), *shape) for shape in state_shapes(circuit, x.shape[2:])]


def state_shapes(circuit: Circuit, size: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of one sample's state in each layer, above inputs of this height and width, if they have any."""
    if circuit.structure.is_chain and not circuit.structure.convolutions:
        return [(w.shape[0],) for w in circuit.weights[: circuit.layers]]
    shapes: dict[int, tuple[int, ...]] = {INPUT: (0, *size)}  # of however many channels
    while len(shapes) <= circuit.layers:
        for (below, above, made), weight in zip(circuit.connections, circuit.weights, strict=False):
            if below in shapes and above not in shapes:
                of_maps = () if made is None else made.output_size(weight, shapes[below][1:])
                shapes[above] = (weight.shape[0], *of_maps)
    return [shapes[layer] for layer in range(circuit.layers)]
