"""Which torch models are chains of layers that a Network can settle."""

from __future__ import annotations

import math

from torch import nn

from ..spec.connections import Convolution, chain
from .layout import (
    POOLINGS,
    Layout,
    above_convolution,
    above_linear,
    above_pooling,
    built,
    refuse_hooks,
    refuse_shared_parameters,
)

GRAMMAR = (
    "a Network is made of nn.Conv2d, each followed by an nn.MaxPool2d, an nn.AvgPool2d or none, then one nn.Flatten "
    "and plain nn.Linear layers; activations are set by activation= and output_activation="
)


def chain_of(model: nn.Sequential, input_shape: tuple[int, ...], readout: bool = False) -> Layout:
    """The chain that ``model`` is, whose last Linear may be a readout.

    TypeError or ValueError, naming the module, if it is none or does not fit.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}")
    if type(model).forward is not nn.Sequential.forward:
        raise TypeError(f"model must run its modules one after the other, {type(model).__name__} has its own forward")
    modules: list[nn.Conv2d | nn.Linear] = []
    convolutions: list[Convolution] = []
    shape = input_shape  # of a sample before the next module
    last: type | None = None
    named = [(f"model[{position}]", module) for position, module in enumerate(model)]
    for where, module in named:
        kind = type(module)
        # Subclasses and parametrized modules compute something else than their class: they are refused as well.
        if type(module) is nn.Flatten and last in (None, nn.Conv2d, *POOLINGS):
            if module.start_dim != 1 or module.end_dim != -1:
                raise TypeError(f"{where} must flatten all but the batch: nn.Flatten(), got {module}")
            shape = (math.prod(shape),)
        elif type(module) is nn.Linear:
            if len(shape) != 1:
                raise TypeError(f"{where} is a Linear on samples of shape {shape}: put nn.Flatten() before it")
            shape = above_linear(module, where, shape[0])
            modules.append(module)
        elif type(module) is nn.Conv2d and last in (None, nn.Conv2d, *POOLINGS):
            made, shape = above_convolution(module, where, shape)
            convolutions.append(made)
            modules.append(module)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and kind in POOLINGS and last is nn.Conv2d:
            convolutions[-1], shape = above_pooling(module, where, convolutions[-1], shape)
        else:
            raise TypeError(f"{where} is {module}: {GRAMMAR}")
        refuse_hooks(module, where)
        last = kind
    if not modules or not isinstance(modules[-1], nn.Linear):
        raise TypeError(f"model must end with an nn.Linear, got {model}: {GRAMMAR}")
    if readout and len(modules) < 2:
        raise ValueError("readout='softmax' needs a layer below the readout, got a model with 1 Linear")
    refuse_hooks(model, "model")
    refuse_shared_parameters(named)
    structure = chain(len(modules), convolutions, readout)
    return Layout(
        modules,
        built([("model", model), *named]),
        structure,
        tuple(map(str, range(structure.layers))),
        flattens_input=isinstance(model[0], nn.Flatten),
    )
