"""Which torch models are chains of layers that a Network can settle, and how their convolutions are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from .spec.connections import Convolution

POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)
GRAMMAR = (
    "a Network is made of nn.Conv2d, each followed by an nn.MaxPool2d, an nn.AvgPool2d or none, then one nn.Flatten "
    "and plain nn.Linear layers; activations are set by activation= and output_activation="
)


# Of each kind of module, the attributes that its class computes by.
SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Linear: (),
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Chain(NamedTuple):
    """The connections of a model, input side first."""

    modules: list[nn.Conv2d | nn.Linear]
    convolutions: tuple[Convolution, ...]  # of the first modules
    flattens_input: bool  # a leading nn.Flatten takes flat samples as well as shaped ones
    built: tuple[tuple[nn.Module, tuple], ...]  # the model and its modules, each with its settings


def refuse_changes(model: nn.Module, chain: Chain) -> None:
    """Raise TypeError, naming what it is, if ``model`` is no longer as ``chain`` was built from it, or would run hooks.

    Only identities are compared: this is asked before every call, and takes some microseconds."""
    modules = (model, *model._modules.values())
    for position, (module, (known, settings)) in enumerate(zip(modules, chain.built, strict=False), -1):
        where = "model" if position < 0 else f"model[{position}]"
        if module is not known:
            raise TypeError(f"{where} was replaced after the Network was made: make a new Network of the new model")
        names = () if position < 0 else SETTINGS.get(type(module))
        if names is None:
            raise TypeError(
                f"{where} became a {type(module).__name__} after the Network was made, as by a parametrization, of "
                "which learning rules know nothing: remove it"
            )
        _refuse_hooks(module, where)
        now = tuple([getattr(module, name) for name in names])
        if now != settings:
            changed = [f"{n} = {a}, was {b}" for n, a, b in zip(names, now, settings, strict=True) if a != b]
            raise TypeError(
                f"{where} was changed after the Network was made ({', '.join(changed)}): make a new Network"
            )
    if len(modules) != len(chain.built):
        raise TypeError(
            f"model had {len(chain.built) - 1} modules when the Network was made, now it has {len(modules) - 1}: make "
            "a new Network of the new model"
        )


def _refuse_hooks(module: nn.Module, where: str) -> None:
    facts = module.__dict__
    for name in HOOKS:
        if facts[name]:
            kind = name.strip("_").replace("_", " ")
            raise TypeError(f"{where} has {kind}, which a Network would never run: remove them")
    if "forward" in facts:
        raise TypeError(f"{where} has a forward of its own, which a Network would never run: remove it")


def chain_of(model: nn.Sequential, input_shape: tuple[int, ...]) -> Chain:
    """The chain that ``model`` is; TypeError or ValueError, naming the module, if it is none or does not fit."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}")
    if type(model).forward is not nn.Sequential.forward:
        raise TypeError(f"model must run its modules one after the other, {type(model).__name__} has its own forward")
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
        _refuse_hooks(module, where)
        last = kind
    if not modules or not isinstance(modules[-1], nn.Linear):
        raise TypeError(f"model must end with an nn.Linear, got {model}: {GRAMMAR}")
    _refuse_hooks(model, "model")
    _refuse_shared_parameters(model)
    built = ((model, ()), *((module, tuple(getattr(module, n) for n in SETTINGS[type(module)])) for module in model))
    return Chain(modules, tuple(convolutions), isinstance(model[0], nn.Flatten), built)


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
