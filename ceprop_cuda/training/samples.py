"""A data set and the batches of it, as rules that take many batches at once are given them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments.checks import shown
from ..data import Normalisation
from ..networks import Network
from ..spec.dynamics import Circuit

BYTES = 256


@dataclass(frozen=True)
class Samples:
    """All samples of a data set, checked against a network."""

    x: Tensor  # (S, *input) as the kernels take it, or bytes
    y: Tensor  # (S,) int64 or (S, classes)
    values: Tensor | None  # of bytes, what each stands for, (channels, 256): a channel's inputs lie together

    @classmethod
    def of(cls, net: Network, circuit: Circuit, x: Tensor, y: Tensor, normalise: Normalisation | None) -> Samples:
        """ValueError or TypeError if they do not fit the network."""
        x, values = checked_inputs(net, circuit, x, normalise)
        like = x if values is None else values.new_empty(1).expand(x.shape)
        return cls(x, net.check_nudge_target(circuit, like, y), values)

    def batch(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """The samples with these numbers, ``(B,)``, as single steps take them."""
        order = order.to(self.x.device)
        x = self.x[order]
        if self.values is not None:
            channels = len(self.values)
            inputs = x.reshape(len(x), channels, math.prod(x.shape[1:]) // channels).long()
            by_channel = torch.arange(channels, device=x.device)[:, None].expand_as(inputs[0])
            x = self.values[by_channel, inputs].reshape(x.shape)
        return x, self.y[order]


def checked_inputs(
    net: Network, circuit: Circuit, x: Tensor, normalise: Normalisation | None
) -> tuple[Tensor, Tensor | None]:
    """x and ``values`` of :class:`Samples`; ValueError or TypeError if they do not fit the network."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        if normalise is not None:
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"normalise says what bytes stand for, so that x must be torch.uint8, got {got}")
        return net.check_input(circuit, x), None
    weight = circuit.weights[0]
    if x.device != weight.device:
        raise ValueError(f"x must be on {weight.device} like the network's weights, got {x.device}")
    # The network looks at samples that take no memory.
    like = net.check_input(circuit, weight.new_empty(1).expand(x.shape))
    return x.reshape(like.shape), _values(weight, x, normalise)


def example_of(x: Tensor, values: Tensor | None) -> Tensor:
    """A sample as the network sees it, by its shape, dtype and device."""
    return x[:1] if values is None else values.new_empty(1, *x.shape[1:])


def _values(weight: Tensor, x: Tensor, normalise: Normalisation | None) -> Tensor:
    numbers = torch.arange(BYTES, dtype=torch.uint8, device=weight.device)
    if normalise is None:
        return numbers.to(weight.dtype).div_(BYTES - 1)[None]
    channels = len(normalise.mean)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"normalise has {channels} channels: x must be (S, {channels}, H, W), got {tuple(x.shape)}")
    if normalise.dtype != weight.dtype:
        raise TypeError(f"normalise must give {weight.dtype} like the network's weights, got {normalise.dtype}")
    return normalise(numbers.expand(channels, BYTES)[None, :, None]).reshape(channels, BYTES)


def checked_orders(orders: Tensor, samples: int, networks: int) -> Tensor:
    """``orders`` ``(R, N, B)`` on the CPU; ValueError or TypeError unless they are numbers of samples."""
    wanted = "(N, B) int64" if networks == 1 else f"({networks}, N, B) int64"
    if not isinstance(orders, Tensor) or orders.dtype != torch.int64:
        raise TypeError(f"order must be {wanted}, got {shown(getattr(orders, 'dtype', orders))}")
    if orders.ndim != 3 or len(orders) != networks or orders.numel() == 0:
        got = tuple(orders.shape[1:] if networks == 1 else orders.shape)
        raise ValueError(f"order must be {wanted}, N batches of B samples, at least 1 each, got {got}")
    low, high = (end.item() for end in orders.aminmax())
    if low < 0 or high >= samples:
        raise ValueError(f"order must hold numbers of samples, 0 .. {samples - 1}, got {low} .. {high}")
    return orders.cpu()
