"""Whether the tensors of a call fit the network that it is made on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments.checks import shown
from .spec.dynamics import Circuit, state_shapes


def check_input(circuit: Circuit, x: Tensor, shape: tuple[int, ...], takes_flat: bool) -> Tensor:
    """``x`` as ``(B, *shape)``, or ``(B, n_in)`` where no connection is a convolution; ValueError or TypeError if its
    shape, dtype or device do not fit. ``takes_flat``: flat samples in place of shaped ones, and the other way round."""
    weight = circuit.weights[0]
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, got one of layout {x.layout}: give x.to_dense()")
    fits = x.shape[1:] == shape or (
        takes_flat and (x.ndim == 2 or len(shape) == 1) and x.ndim >= 2 and math.prod(x.shape[1:]) == weight.shape[1]
    )
    if not fits or x.shape[0] < 1:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"x must be (B, {wanted}) with B >= 1, got {tuple(x.shape)}")
    if x.dtype != weight.dtype:
        raise TypeError(f"x must be {weight.dtype} like the network's weights, got {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"x must be on {weight.device} like the network's weights, got {x.device}")
    dtype, device = x.dtype, x.device
    for p in circuit.parameters():
        if p.dtype != dtype or p.device != device:
            raise TypeError(f"all parameters must be {dtype} on {device}, got one of {p.dtype} on {p.device}")
    return x if x.ndim == 2 or circuit.structure.convolutions else x.flatten(1)


def check_target(x: Tensor, target: Tensor, classes: int) -> Tensor:
    """``target`` as the kernels take it, floats ``(B, classes)`` in x's dtype or class indices as they are; ValueError
    or TypeError if it does not fit. Whether indices are classes is for those to see who look at them: here that would
    wait for a GPU."""
    batch = x.shape[0]

    def wrong(kind: type[Exception], got: object) -> Exception:
        wanted = f"class indices ({batch},) int64 or float targets ({batch}, {classes})"
        return kind(f"the target must be {wanted}, got {got}")

    if not isinstance(target, Tensor):
        raise wrong(TypeError, type(target).__name__)
    if target.layout != torch.strided:
        raise TypeError(f"the target must be a dense tensor, got one of layout {target.layout}: give .to_dense()")
    if target.device != x.device:
        raise ValueError(f"the target must be on {x.device} like x, got {target.device}")
    if target.shape not in ((batch,), (batch, classes)):
        raise wrong(ValueError, f"{tuple(target.shape)} {target.dtype}")
    if target.ndim == 2:
        if not target.is_floating_point():
            raise wrong(TypeError, f"{tuple(target.shape)} {target.dtype}")
        return target.to(x.dtype)
    if target.dtype != torch.int64:
        raise wrong(TypeError, f"{tuple(target.shape)} {target.dtype}")
    return target


def dense_target(target: Tensor, like: Tensor, classes: int) -> Tensor:
    """What :func:`check_target` returns as ``(B, classes)``, in the dtype of ``like``; ValueError if an index is no
    class, on a GPU an assertion there."""
    if target.ndim == 2:
        return target
    one_hot = like.new_zeros(len(target), classes)
    try:
        return one_hot.scatter_(1, target.unsqueeze(1), 1)
    except RuntimeError:  # scatter_ looks at the indices on the CPU anyway: looking here as well would take longer
        low, high = (end.item() for end in target.aminmax())
        if low >= 0 and high < classes:
            raise
        raise ValueError(f"class indices must lie in 0 .. {classes - 1}, got {low} .. {high}") from None


def check_states(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> None:
    """ValueError or TypeError unless ``states`` are one of each layer, for the samples of ``x``, as
    :func:`check_input` returns it."""
    wanted = [(len(x), *shape) for shape in state_shapes(circuit, x.shape[2:])]
    if not isinstance(states, list | tuple) or not all(isinstance(s, Tensor) for s in states):
        raise TypeError(f"states must be a list of tensors of the shapes {wanted}, got {shown(states)}")
    got = [tuple(s.shape) for s in states]
    if got != wanted:
        raise ValueError(f"states must have the shapes {wanted}, got {got}")
    for layer, s in enumerate(states):
        if s.dtype != x.dtype or s.device != x.device:
            raise TypeError(f"states[{layer}] must be {x.dtype} on {x.device} like x, got {s.dtype} on {s.device}")
