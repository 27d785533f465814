"""Networks by their sizes, shorter than by a torch model, and by their connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from ..arguments.checks import one_of, shown, whole_number
from ..spec.connections import POOLS_BY_LETTER, Convolution
from .graphs import Graph
from .network import Network


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


def graph(
    connections: Sequence[tuple[str, str, nn.Module]],
    *,
    input_shape: Sequence[int],
    output: str,
    turns: Sequence[Sequence[str]] | None = None,
    **settings: Any,
) -> Network:
    """A :class:`Network` of layers that are joined in any way, e.g. with connections that skip a layer.

    A layer is what connections with its name lead to and from; its state ``(B, n)`` or ``(B, C, H, W)`` is shaped like
    what comes from the modules that end there, which must be the same of all of them. Signals go both ways: a layer's
    drive is the sum over the connections that end at it, and over those that start there, by the transpose of the
    module. Where layers follow each other as in a chain the fused kernels run, else PyTorch's operators with kernels
    around them.

    Args:
        connections: ``(below, above, module)``, e.g. ``("h1", "h2", nn.Linear(64, 32))``. ``below`` may be "input".
            The module is an ``nn.Linear``, which takes maps flattened, an ``nn.Conv2d``, or an ``nn.Sequential`` of an
            ``nn.Conv2d`` and an ``nn.MaxPool2d`` or ``nn.AvgPool2d``.
        input_shape: shape of one sample, which may be anything where all connections from the input are dense.
        output: the layer that is nudged and answers, ``(B, classes)``.
        turns: lists of layers, together every layer once: in a step those of the first list move together, then those
            of the next one by what the former have become, and so on. None: by ``schedule``; "asynchronous" has two
            turns, by whether the longest path from the input to the layer is of an odd or of an even length.
        settings: as for Network, but ``readout``.

    Raises:
        TypeError, ValueError: a module is not supported or does not fit, a layer is not joined to both the input and
            the output, or connections make a ring; the message names the connection or the layer.
    """
    return Network(Graph(connections, output, turns), input_shape, **settings)
