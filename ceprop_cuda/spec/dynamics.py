"""The units of a network and one step of them, in plain PyTorch: the first half of the specification.

The second half, phases and learning, is ``reference.py``. This file is written to be read beside the papers, runs on
any device and in any floating dtype, is differentiable, and knows nothing of the kernels.

Layers l = 0 .. L-1 count from the input. ``s[l]`` is layer l's state, ``(B, n_l)``. Connection l joins what is
below (``x`` for l = 0, else ``s[l-1]``) to layer l through ``W[l]`` ``(n_l, n_{l-1})`` and ``b[l]`` ``(n_l,)``.

References: arXiv 1905.13633 (EP in discrete time), 2005.04168 and 2005.04169 (C-VF), 2006.03824 (nudging inside rho,
cross-entropy, softmax readout), 2312.15103 (asynchronous steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import connections
from .connections import Convolution

ACTIVATIONS = ("sigmoid", "hard_sigmoid", "half_hard_sigmoid", "centered_hard_sigmoid", "tanh", "linear")
SCHEDULES = ("synchronous", "asynchronous")


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
    """The parameters of a chain of layers, convolutions and then dense ones, with its dynamics.

    With ``readout`` the last weight and bias are R ``(classes, n_{L-1})`` and c ``(classes,)``, outside the dynamics.
    """

    weights: list[Tensor]  # W[l] (n_l, n_{l-1}), of a convolution (n_l, n_{l-1}, kernel height, kernel width)
    biases: list[Tensor | None]  # b[l] (n_l,)
    free_feedback: list[Tensor] | None  # V[1], V[2], ... each shaped like W[l]; None: tied
    dynamics: Dynamics
    readout: bool = False
    convolutions: tuple[Convolution, ...] = ()  # how connections 0, 1, ... are made; the others are dense

    @property
    def layers(self) -> int:
        return len(self.weights) - self.readout

    @property
    def feedback(self) -> list[Tensor]:
        """What carries layers 1, 2, ... back to the ones below: W[1], W[2], ... when tied, else V[1], V[2], ..."""
        return self.weights[1 : self.layers] if self.free_feedback is None else self.free_feedback

    def convolution(self, connection: int) -> Convolution | None:
        """How this connection is made; None if it is dense."""
        return self.convolutions[connection] if connection < len(self.convolutions) else None

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
    """A pull of the output towards ``target`` ``(B, classes)`` of strength ``beta``."""

    target: Tensor
    beta: float
    at: str = "state"  # | "drive"
    loss: str = "mse"  # | "cross_entropy"


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


def emitted(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """What the neighbours see of the input ``x`` and of each layer, in this order: x and the states, or
    rho of them in energy dynamics."""
    if circuit.dynamics.kind == "prototypical":
        return [x, *states]
    sent = [rho(activation_of(circuit, layer), s) for layer, s in enumerate(states)]
    return [rho(circuit.dynamics.activation, x), *sent]


def logits(circuit: Circuit, states: Sequence[Tensor]) -> Tensor:
    """The network's answer ``(B, classes)``: the output units, or R s + c with a readout."""
    if circuit.readout:
        return F.linear(states[-1].flatten(1), circuit.weights[-1], circuit.biases[-1])
    return states[-1]


def output_error(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> Tensor:
    """Minus the gradient of the loss of one sample with respect to its logits, ``(B, classes)``."""
    answer = logits(circuit, states)
    return nudge.target - (answer if nudge.loss == "mse" else answer.softmax(dim=1))


def from_below(circuit: Circuit, seen: Sequence[Tensor], layer: int) -> Tensor:
    """F_l(s[l-1]), shaped like the state of ``layer``."""
    return connections.forward(seen[layer], circuit.weights[layer], circuit.biases[layer], circuit.convolution(layer))


def drive(circuit: Circuit, seen: Sequence[Tensor], layer: int, from_input: Tensor | None = None) -> Tensor:
    """a_l = F_l(s[l-1]) + F_{l+1}^T(s[l+1]; s[l]): what reaches ``layer`` from below and above, shaped like its state,
    if it and its neighbours send ``seen``, as :func:`emitted` returns it. ``from_input`` is F_0(x), which no step
    changes, if the caller has it."""
    below = from_input if layer == 0 and from_input is not None else from_below(circuit, seen, layer)
    above = layer + 1
    if above == circuit.layers:
        return below
    bias = circuit.biases[above] if circuit.free_feedback is None else None
    made = circuit.convolution(above)
    return below + connections.transpose(seen[layer + 2], circuit.feedback[layer], bias, made, seen[above])


def next_state(
    circuit: Circuit,
    seen: Sequence[Tensor],
    states: Sequence[Tensor],
    layer: int,
    nudge: Nudge | None,
    from_input: Tensor | None = None,
) -> Tensor:
    """Where ``layer`` moves from its own state in ``states``, by what its neighbours send, ``seen``.

    Prototypical  s <- rho(a);   energy  s <- clip(s + dt (-s + rho'(s) a)), without rho' at the output and in vector
    fields. The nudge adds beta e, e = y - s or y - softmax(s): after rho (``at="state"``) or before it (``"drive"``);
    a readout adds beta R^T e before it.
    """
    a, s = drive(circuit, seen, layer, from_input), states[layer]
    is_top = layer == circuit.layers - 1
    inside = outside = torch.zeros_like(a)
    if is_top and nudge is not None:
        pull = nudge.beta * output_error(circuit, states, nudge)
        if circuit.readout:
            inside = (pull @ circuit.weights[-1]).view_as(a)
        elif nudge.at == "drive":
            inside = pull
        else:
            outside = pull
    name = activation_of(circuit, layer)
    if circuit.dynamics.kind == "prototypical":
        return rho(name, a + inside) + outside
    gain = 1.0 if is_top or circuit.free_feedback is not None else rho_prime(name, s)
    moved = s + circuit.dynamics.dt * (-s + gain * a + inside + outside)
    return moved.clamp(0, 1) if circuit.dynamics.clip else moved


def step(
    circuit: Circuit,
    x: Tensor,
    states: Sequence[Tensor],
    nudge: Nudge | None = None,
    from_input: Tensor | None = None,
) -> list[Tensor]:
    """One step, in which every layer moves once; ``from_input`` as for :func:`drive`.

    Synchronous: all layers at once, from the states before the step. Asynchronous (2312.15103): first the layers 0, 2,
    ... at once, then the layers 1, 3, ... from the newest states of their neighbours. Both have the same fixed points.
    """
    states = list(states)
    turns = 1 if circuit.dynamics.schedule == "synchronous" else 2
    for turn in range(turns):
        seen = emitted(circuit, x, states)
        layers = range(turn, circuit.layers, turns)
        states[turn::turns] = [next_state(circuit, seen, states, layer, nudge, from_input) for layer in layers]
    return states


def resting_states(circuit: Circuit, x: Tensor) -> list[Tensor]:
    """All-zero states ``(B, n_l)`` or ``(B, n_l, H, W)``, where every free phase starts."""
    return [x.new_zeros(len(x), *shape) for shape in state_shapes(circuit, x.shape[2:])]


def state_shapes(circuit: Circuit, size: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of one sample's state in each layer, above inputs of this height and width, if they have any."""
    shapes: list[tuple[int, ...]] = []
    for layer, weight in enumerate(circuit.weights[: circuit.layers]):
        made = circuit.convolution(layer)
        size = () if made is None else made.output_size(weight, size)
        shapes.append((weight.shape[0], *size))
    return shapes
