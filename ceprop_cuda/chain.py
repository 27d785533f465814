"""Which torch models are chains of layers that a Network can settle, and how their convolutions are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from .connections import Convolution

POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)
GRAMMAR = (
    "a Network is made of nn.Conv2d, each followed by an nn.MaxPool2d, an nn.AvgPool2d or none, then one nn.Flatten "
    "and plain nn.Linear layers; activations are set by activation= and output_activation="
)


class Chain(NamedTuple):
    """The connections of a model, input side first."""

    modules: list[nn.Conv2d | nn.Linear]
    convolutions: tuple[Convolution, ...]  # of the first modules
    flattens_input: bool  # a leading nn.Flatten takes flat samples as well as shaped ones


def chain_of(model: nn.Sequential, input_shape: tuple[int, ...]) -> Chain:
    """The chain that ``model`` is; TypeError or ValueError, naming the module, if it is none or does not fit."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}")
    modules: list[nn.Conv2d | nn.Linear] = []
    convolutions: list[Convolution] = []
    shape = input_shape  # of a sample before the next module
    last: type | None = None
    for position, module in enumerate(model):
        where, kind = f"model[{position}]", type(module)
        # Subclasses and parametrized modules compute something else than their class: they are refused as well.
        if type(module) is nn.Flatten and last in (None, nn.Conv2d, *POOLINGS):
            if module.start_dim != 1 or module.end_dim != -1:
                raise TypeError(f"{where} must flatten all but the batch: nn.Flatten(), got {module}")
            shape = (math.prod(shape),)
        elif type(module) is nn.Linear:
            shape = _above_linear(module, where, shape)
            modules.append(module)
        elif type(module) is nn.Conv2d and last in (None, nn.Conv2d, *POOLINGS):
            convolutions.append(_convolution(module, where, shape))
            shape = (module.out_channels, *_size(convolutions[-1], module, where, shape))
            modules.append(module)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and kind in POOLINGS and last is nn.Conv2d:
            pool, window = _pooling(module, where)
            convolutions[-1] = replace(convolutions[-1], pool=pool, window=window)
            shape = (shape[0], shape[1] // window[0], shape[2] // window[1])
            if min(shape) < 1:
                raise ValueError(f"{where} pools windows of {window}, larger than what comes from the convolution")
        else:
            raise TypeError(f"{where} is {module}: {GRAMMAR}")
        if module._forward_hooks or module._forward_pre_hooks:
            raise TypeError(f"{where} has forward hooks, which a Network would never run: remove them")
        last = kind
    if not modules or not isinstance(modules[-1], nn.Linear):
        raise TypeError(f"model must end with an nn.Linear, got {model}: {GRAMMAR}")
    _refuse_shared_parameters(model)
    return Chain(modules, tuple(convolutions), isinstance(model[0], nn.Flatten))


def _above_linear(module: nn.Linear, where: str, shape: tuple[int, ...]) -> tuple[int]:
    if len(shape) != 1:
        raise TypeError(f"{where} is a Linear on samples of shape {shape}: put nn.Flatten() before it")
    if module.in_features != shape[0]:
        raise ValueError(f"{where} must take {shape[0]} features, got in_features={module.in_features}")
    return (module.out_features,)


def _convolution(module: nn.Conv2d, where: str, shape: tuple[int, ...]) -> Convolution:
    if len(shape) != 3:
        raise ValueError(f"{where} is a Conv2d: samples must be (channels, height, width), got {shape}")
    if module.in_channels != shape[0]:
        raise ValueError(f"{where} must take {shape[0]} channels, got in_channels={module.in_channels}")
    padding = module.padding
    if module.groups != 1 or set(module.dilation) != {1} or module.padding_mode != "zeros" or isinstance(padding, str):
        raise TypeError(f"{where} must be a plain convolution, without groups or dilation, zero-padded, got {module}")
    return Convolution(_pair(module.stride), _pair(padding))


def _size(made: Convolution, module: nn.Conv2d, where: str, shape: tuple[int, ...]) -> tuple[int, int]:
    size = made.output_size(module.weight, shape[1:])
    if min(size) < 1:
        raise ValueError(f"{where} has a kernel of {module.kernel_size}, larger than its input of {shape[1:]}")
    return size


def _pooling(module: nn.MaxPool2d | nn.AvgPool2d, where: str) -> tuple[str, tuple[int, int]]:
    window, stride, padding = (
        _pair(value) for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    special = module.ceil_mode or getattr(module, "return_indices", False) or getattr(module, "divisor_override", None)
    if window != stride or padding != (0, 0) or special or _pair(getattr(module, "dilation", 1)) != (1, 1):
        raise TypeError(f"{where} must pool windows side by side, with stride = kernel_size, got {module}")
    return "max" if isinstance(module, nn.MaxPool2d) else "avg", window


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def _refuse_shared_parameters(model: nn.Sequential) -> None:
    seen: dict[int, int] = {}
    for position, module in enumerate(model):
        for p in module.parameters(recurse=False):
            if id(p) in seen:
                raise TypeError(
                    f"model[{position}] shares parameters with model[{seen[id(p)]}]: each connection needs its own"
                )
            seen[id(p)] = position
