"""What of torch's modules a Network is made of, and how its convolutions are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from ..spec.connections import Convolution, Structure

POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)

# Of each kind of module, the attributes that its class computes by.
SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Linear: (),
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.Sequential: (),  # of a convolution and its pooling
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Layout(NamedTuple):
    """The connections of a model and the layers that they join."""

    modules: list[nn.Conv2d | nn.Linear]  # of each connection; of a chain a readout comes last
    built: tuple[tuple[str, nn.Module, tuple], ...]  # the model and all modules in it, each with its settings
    structure: Structure
    names: tuple[str, ...]  # of the layers
    flattens_input: bool = False  # a leading nn.Flatten takes flat samples as well as shaped ones


def built(named: Iterable[tuple[str, nn.Module]]) -> tuple[tuple[str, nn.Module, tuple], ...]:
    """Modules with the words for where they are, and their settings, as :class:`Layout` keeps them."""
    return tuple((where, m, tuple(getattr(m, name) for name in SETTINGS.get(type(m), ()))) for where, m in named)


def refuse_changes(model: nn.Module, layout: Layout) -> None:
    """Raise TypeError, naming what it is, if ``model`` is no longer as ``layout`` was built from it, or would run
    hooks.

    Only identities are compared: this is asked before every call, and takes some microseconds."""
    modules = _parts(model)
    for module, (where, known, settings) in zip(modules, layout.built, strict=False):
        if module is not known:
            raise TypeError(f"{where} was replaced after the Network was made: make a new Network of the new model")
        names = () if module is model else SETTINGS.get(type(module))
        if names is None:
            raise TypeError(
                f"{where} became a {type(module).__name__} after the Network was made, as by a parametrization, of "
                "which learning rules know nothing: remove it"
            )
        refuse_hooks(module, where)
        if names and (now := tuple([getattr(module, name) for name in names])) != settings:
            changed = [f"{n} = {a}, was {b}" for n, a, b in zip(names, now, settings, strict=True) if a != b]
            raise TypeError(
                f"{where} was changed after the Network was made ({', '.join(changed)}): make a new Network"
            )
    if len(modules) != len(layout.built):
        raise TypeError(
            f"model had {len(layout.built) - 1} modules when the Network was made, now it has {len(modules) - 1}: make "
            "a new Network of the new model"
        )


def parameter_of(module: nn.Module, name: str) -> Any:
    """What ``getattr`` gives, past the Python code of nn.Module, which takes several times as long."""
    own = module._parameters
    return own[name] if name in own else getattr(module, name)


def _parts(model: nn.Module) -> list[nn.Module]:
    """The model, its modules, and after each of them those within it."""
    parts = [model]
    for module in model._modules.values():
        assert module is not None
        parts.append(module)
        if type(module) is nn.Sequential:
            parts.extend(module)
    return parts


def refuse_hooks(module: nn.Module, where: str) -> None:
    facts = module.__dict__
    if any(map(facts.__getitem__, HOOKS)):
        kind = next(filter(facts.__getitem__, HOOKS)).strip("_").replace("_", " ")
        raise TypeError(f"{where} has {kind}, which a Network would never run: remove them")
    if "forward" in facts:
        raise TypeError(f"{where} has a forward of its own, which a Network would never run: remove it")


def refuse_shared_parameters(named: Iterable[tuple[str, nn.Module]]) -> None:
    seen: dict[int, str] = {}
    for where, module in named:
        for p in module.parameters(recurse=False):
            if id(p) in seen:
                raise TypeError(f"{where} shares parameters with {seen[id(p)]}: each connection needs its own")
            seen[id(p)] = where


def above_linear(module: nn.Linear, where: str, features: int) -> tuple[int]:
    """The shape of what comes from it, for one sample of so many ``features``."""
    if module.in_features != features:
        raise ValueError(f"{where} must take {features} features, got in_features={module.in_features}")
    return (module.out_features,)


def above_convolution(
    module: nn.Conv2d, where: str, shape: tuple[int, ...]
) -> tuple[Convolution, tuple[int, int, int]]:
    """How it is made, and the shape of what comes from it, for one sample of ``shape``."""
    if len(shape) != 3:
        raise ValueError(f"{where} is a Conv2d: samples must be (channels, height, width), got {shape}")
    if module.in_channels != shape[0]:
        raise ValueError(f"{where} must take {shape[0]} channels, got in_channels={module.in_channels}")
    padding = module.padding
    if module.groups != 1 or set(module.dilation) != {1} or module.padding_mode != "zeros" or isinstance(padding, str):
        raise TypeError(f"{where} must be a plain convolution, without groups or dilation, zero-padded, got {module}")
    made = Convolution(_pair(module.stride), _pair(padding))
    size = made.output_size(module.weight, shape[1:])
    if min(size) < 1:
        raise ValueError(f"{where} has a kernel of {module.kernel_size}, larger than its input of {shape[1:]}")
    return made, (module.out_channels, *size)


def above_pooling(
    module: nn.MaxPool2d | nn.AvgPool2d, where: str, made: Convolution, shape: tuple[int, ...]
) -> tuple[Convolution, tuple[int, int, int]]:
    """How the convolution ``made`` is made with this pooling, and the shape of what comes from both, where ``shape``
    comes from the convolution alone."""
    window, stride, padding = (
        _pair(value) for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    special = module.ceil_mode or getattr(module, "return_indices", False) or getattr(module, "divisor_override", None)
    if window != stride or padding != (0, 0) or special or _pair(getattr(module, "dilation", 1)) != (1, 1):
        raise TypeError(f"{where} must pool windows side by side, with stride = kernel_size, got {module}")
    pooled = (shape[0], shape[1] // window[0], shape[2] // window[1])
    if min(pooled) < 1:
        raise ValueError(f"{where} pools windows of {window}, larger than what comes from the convolution")
    return replace(made, pool="max" if isinstance(module, nn.MaxPool2d) else "avg", window=window), pooled


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
