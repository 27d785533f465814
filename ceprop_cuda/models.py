"""Networks by their sizes: what is written most often, shorter than by a torch model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from .checks import one_of, shown, whole_number
from .network import Network
from .spec.connections import POOLS_BY_LETTER, Convolution


def mlp(*sizes: int, bias: bool = True, **settings: Any) -> Network:
    """A :class:`Network` of dense layers of these ``sizes``, input first; ``settings`` as for Network.

    Raises ValueError if there are fewer than two sizes, or one is no int >= 1.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp needs at least an input and an output size, got {sizes}")
    for position, size in enumerate(sizes):
        whole_number(f"sizes[{position}]", size, 1)
    linears = [nn.Linear(below, above, bias=bias) for below, above in pairwise(sizes)]
    return Network(nn.Sequential(nn.Flatten(), *linears), input_shape=(sizes[0],), **settings)


def convnet(
    input_shape: Sequence[int],
    channels: Sequence[int],
    kernels: int | Sequence[int],
    paddings: int | Sequence[int] = 0,
    pools: str = "",
    fc: Sequence[int] = (10,),
    bias: bool = True,
    **settings: Any,
) -> Network:
    """A :class:`Network` of convolutions and then dense layers.

    Args:
        input_shape: ``(channels, height, width)`` of a sample.
        channels: output channels of each convolution.
        kernels, paddings: of each convolution, or one for all.
        pools: a letter for each convolution: "m" 2x2 maximum, "a" 2x2 average, "i" none; "": none anywhere.
        fc: units of the dense layers; the last are the output units or, with a readout, the classes.
        bias: whether connections have one.
        settings: as for Network.

    Raises:
        ValueError: sizes do not fit together.
    """
    count = len(channels)
    kernels, paddings = ([value] * count if isinstance(value, int) else list(value) for value in (kernels, paddings))
    pools = pools or "i" * count
    for name, values in (("kernels", kernels), ("paddings", paddings), ("pools", pools)):
        if len(values) != count:
            raise ValueError(f"{name} must hold {count} values, one per convolution, got {shown(values)}")
    modules: list[nn.Module] = []
    shape = tuple(whole_number("input_shape", size, 1) for size in input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (channels, height, width), got {tuple(input_shape)}")
    for out, kernel, padding, pool in zip(channels, kernels, paddings, pools, strict=True):
        one_of("pools", pool, tuple(POOLS_BY_LETTER))
        convolution = nn.Conv2d(shape[0], out, kernel, padding=padding, bias=bias)
        modules.append(convolution)
        if pool != "i":
            modules.append(nn.MaxPool2d(2) if pool == "m" else nn.AvgPool2d(2))
        made = Convolution(padding=(padding, padding), pool=POOLS_BY_LETTER[pool])
        shape = (out, *made.output_size(convolution.weight, shape[1:]))
        if min(shape) < 1:
            raise ValueError(f"nothing is left of the image after {len(modules)} modules: {shape}")
    units = [math.prod(shape), *fc]
    modules += [nn.Flatten(), *(nn.Linear(below, above, bias=bias) for below, above in pairwise(units))]
    return Network(nn.Sequential(*modules), input_shape, **settings)
