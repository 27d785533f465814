"""What joins two layers, dense or a convolution with pooling: the way up, the way down, and the weights' contrast; and
which layers of a network are joined.

Every function takes the connection's weight and, if it is a convolution, how that is made. Phi = v . F(u) is what a
connection adds to the primitive function, v above it and u below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

POOLS_BY_LETTER = {"m": "max", "a": "avg", "i": "none"}
# What is no layer: below a connection the input, above a readout the answer, which is outside the dynamics.
INPUT, ANSWER = -1, -2


@dataclass(frozen=True)
class Convolution:
    """pool(conv2d(u, W, b)); windows of the pooling lie side by side, what is left at the far edges is dropped."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pool: str = "none"  # | "max" | "avg"
    window: tuple[int, int] = (2, 2)

    def output_size(self, weight: Tensor, size: Sequence[int]) -> tuple[int, int]:
        """Height and width above an input of these; not positive where a kernel or a window does not fit."""
        steps = zip(size, weight.shape[2:], self.stride, self.padding, self.window, strict=True)
        sizes = [
            ((of + 2 * padding - kernel) // stride + 1) // (1 if self.pool == "none" else window)
            for of, kernel, stride, padding, window in steps
        ]
        return sizes[0], sizes[1]


class Connection(NamedTuple):
    """A way from the layer ``below``, or from INPUT, to the layer ``above``, and with tied feedback back again; or a
    readout, from the output layer to ANSWER."""

    below: int
    above: int
    convolution: Convolution | None = None  # None: dense


@dataclass(frozen=True)
class Structure:
    """Which layers a network has and how they are joined: no layer to itself, and nowhere in a ring."""

    connections: tuple[Connection, ...]  # a readout is the last one
    output: int  # the layer that is nudged, or that the readout reads
    turns: tuple[tuple[int, ...], ...] | None = None  # the layers of each turn of a step; None: as the schedule says
    is_chain: bool = field(default=False, compare=False)  # convolutions, then dense, layer by layer
    has_readout: bool = field(init=False, compare=False)
    convolutions: tuple[Convolution, ...] = field(init=False, compare=False)  # how those that are some are made
    moving: tuple[Connection, ...] = field(init=False, compare=False)  # those of the dynamics: all but a readout
    layers: int = field(init=False, compare=False)  # the number of layers with states
    inner: list[int] = field(init=False, compare=False)  # connections between two layers, which carry something back
    answering: int = field(init=False, compare=False)  # one whose units are the answer's classes

    def __post_init__(self) -> None:
        has_readout = self.connections[-1].above == ANSWER
        moving = self.connections[:-1] if has_readout else self.connections
        found = {
            "has_readout": has_readout,
            "convolutions": tuple(c.convolution for c in moving if c.convolution is not None),
            "moving": moving,
            "layers": 1 + max(c.above for c in moving),
            "inner": [e for e, c in enumerate(moving) if c.below != INPUT],
            "answering": [c.above for c in self.connections].index(ANSWER if has_readout else self.output),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def depths(self) -> list[int]:
        """Of each layer the number of connections on the longest path from the input."""
        depths = [0] * self.layers
        for _ in depths:  # no path is longer than the number of layers
            for c in self.moving:
                depths[c.above] = max(depths[c.above], 1 + (0 if c.below == INPUT else depths[c.below]))
        return depths

    def scheduled_turns(self, schedule: str) -> tuple[tuple[int, ...], ...]:
        """``turns``, or those of the schedule: "synchronous", all layers at once, or "asynchronous", first those at an
        odd depth, which in a chain are the layers 0, 2, ..., then those at an even one."""
        if self.turns is not None:
            return self.turns
        if schedule == "synchronous":
            return (tuple(range(self.layers)),)
        depths = self.depths()
        return tuple(tuple(layer for layer, depth in enumerate(depths) if depth % 2 == odd) for odd in (1, 0))


def chain(connections: int, convolutions: Sequence[Convolution] = (), readout: bool = False) -> Structure:
    """Layer 0 above the input, every other one above the one before; ``convolutions`` come first. With ``readout`` the
    last connection reads the last layer out."""
    made = [*convolutions, *[None] * (connections - len(convolutions))]
    joined = [Connection(above - 1, above, made[above]) for above in range(connections)]
    if readout:
        joined[-1] = joined[-1]._replace(above=ANSWER)
    return Structure(tuple(joined), connections - 1 - readout, is_chain=True)


def forward(u: Tensor, weight: Tensor, bias: Tensor | None, made: Convolution | None) -> Tensor:
    """F(u): ``(B, n)``, or of a convolution ``(B, C, H, W)``; a dense connection takes either."""
    if made is None:
        return F.linear(u.flatten(1), weight, bias)
    return _pooled(_convolved(u, weight, bias, made), made)


def transpose(v: Tensor, weight: Tensor, bias: Tensor | None, made: Convolution | None, u: Tensor) -> Tensor:
    """F^T(v; u), shaped like u: the derivative of Phi by u, where u moves no maximum of a pooling."""
    if made is None:
        return (v @ weight).view_as(u)
    unpooled = _unpooled(v, _convolved(u, weight, bias, made), made)
    return conv2d_input(u.shape, weight, unpooled, made.stride, made.padding)


def contrast(
    v: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    made: Convolution | None,
    picking: Tensor | None = None,
) -> Tensor:
    """The derivative of Phi by the weight, summed over the batch and shaped like it. The maxima of a pooling are those
    of ``picking`` in place of u, if it is given."""
    if made is None:
        return v.flatten(1).T @ u.flatten(1)
    unpooled = _unpooled(v, _convolved(u if picking is None else picking, weight, bias, made), made)
    return conv2d_weight(u, weight.shape, unpooled, made.stride, made.padding)


def bias_contrast(v: Tensor) -> Tensor:
    """The derivative of Phi by the bias: the sum over the batch and over all places of a channel."""
    return v.sum((0, *range(2, v.ndim)))


def _convolved(u: Tensor, weight: Tensor, bias: Tensor | None, made: Convolution) -> Tensor:
    return F.conv2d(u, weight, bias, made.stride, made.padding)


def _pooled(z: Tensor, made: Convolution) -> Tensor:
    if made.pool == "max":
        return F.max_pool2d(z, made.window)
    return F.avg_pool2d(z, made.window) if made.pool == "avg" else z


def _unpooled(v: Tensor, z: Tensor, made: Convolution) -> Tensor:
    """The transpose of the pooling at ``z``: to the maximum's place, the first of equal ones, or in equal parts."""
    if made.pool == "max":
        places = F.max_pool2d(z, made.window, return_indices=True)[1]
        return F.max_unpool2d(v, places, made.window, output_size=z.shape[2:])
    if made.pool == "none":
        return v
    height, width = made.window
    spread = (v / (height * width)).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return F.pad(spread, (0, z.shape[3] - spread.shape[3], 0, z.shape[2] - spread.shape[2]))
