"""What torch.compile, fake tensors and autograd are told of the ops: the shapes of their results, and that they have no
gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C  # noqa: F401 which defines the ops
from .spec.connections import ANSWER, INPUT, POOLS_BY_LETTER, Connection, Convolution, Structure
from .spec.dynamics import Circuit, Dynamics, state_shapes

DENSE = "d"  # the letter of a connection that is no convolution


def new_states(x: Tensor, shapes: Sequence[tuple[int, ...]], phases: int = 1) -> list[Tensor]:
    """Uninitialised states ``(B, *shape)`` of every layer, ``phases`` times."""
    return [x.new_empty(x.shape[0], *shape) for _ in range(phases) for shape in shapes]


def _shapes(
    x: Tensor,
    weights: list[Tensor],
    readout: bool,
    strides: Sequence[int] = (),
    paddings: Sequence[int] = (),
    pools: str = "",
    windows: Sequence[int] = (),
    joined: Sequence[int] = (),
    **_settings: Any,
) -> list[tuple[int, ...]]:
    """Of one sample's states, from the arguments of an op."""
    moving = len(weights) - readout
    pairs = [list(zip(of[::2], of[1::2], strict=True)) for of in (strides, paddings, windows)]
    made = [
        None if letter == DENSE else Convolution(s, p, POOLS_BY_LETTER[letter], w)
        for letter, s, p, w in zip(pools, *pairs, strict=True)
    ]
    made += [None] * (moving - len(made))
    ends = list(zip(joined[::2], joined[1::2], strict=True)) or [(c - 1, c) for c in range(moving)]
    connections = [Connection(*end, of) for end, of in zip(ends, made, strict=True)]
    output = connections[-1].above  # of a chain; states' shapes ask for no graph's
    connections += [Connection(output, ANSWER)] * readout
    structure = Structure(tuple(connections), output)
    reached = {INPUT}
    for _ in ends:
        reached |= {above for below, above in ends if below in reached}
    if reached != {INPUT, *range(structure.layers)}:
        raise ValueError(f"joined must lead from the input to every layer, got {joined}")
    return state_shapes(Circuit(weights, [], None, Dynamics(), structure), x.shape[2:])


_SHAPING = ("strides", "paddings", "pools", "windows", "joined")  # the settings that shapes depend on


def _new_steps(x: Tensor, phases: int) -> Tensor:
    return x.new_empty(phases, dtype=torch.int64)


def _check_devices(x: Tensor, target: Tensor | None, **lists: list[Tensor]) -> None:
    """One tensor on the meta device among others would bring the call to the fake kernel, which computes nothing."""
    named = [(f"{name}[{index}]", tensor) for name, tensors in lists.items() for index, tensor in enumerate(tensors)]
    for name, tensor in [("target", target), *named]:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {tensor.device}")


@torch.library.register_fake("ceprop_cuda::relax")
def _(x, weights, biases, feedback_weights, states, target, *, readout, **settings):  # type: ignore[no-untyped-def]
    _check_devices(x, target, weights=weights, biases=biases, feedback_weights=feedback_weights, states=states)
    return new_states(x, _shapes(x, weights, readout, **settings)), _new_steps(x, 1)


@torch.library.register_fake("ceprop_cuda::ep_step")
def _(x, weights, biases, feedback_weights, target, *, symmetric, readout, **settings):  # type: ignore[no-untyped-def]
    _check_devices(x, target, weights=weights, biases=biases, feedback_weights=feedback_weights)
    like = [[p.new_empty(p.shape) for p in group] for group in (weights, biases, feedback_weights)]
    shapes = _shapes(x, weights, readout, **settings)
    return *like, new_states(x, shapes), new_states(x, shapes, 1 + symmetric), _new_steps(x, 2 + symmetric)


@torch.library.register_fake("ceprop_cuda::cep_step")
def _(  # type: ignore[no-untyped-def]
    x, weights, biases, feedback_weights, target, free_states, nudged_states, *, symmetric, **_settings
):
    lists = {"weights": weights, "biases": biases, "feedback_weights": feedback_weights}
    _check_devices(x, target, **lists, free_states=free_states, nudged_states=nudged_states)
    return _new_steps(x, 4 if symmetric else 2)


@torch.library.register_fake("ceprop_cuda::learn")
def _(  # type: ignore[no-untyped-def]
    x,
    target,
    order,
    betas,
    rates,
    values,
    weights,
    biases,
    feedback_weights,
    momenta,
    *,
    symmetric,
    readout,
    **settings,
):
    networks, count, batch = order.shape
    phases = 2 + symmetric + (symmetric and settings["continual"])
    of_one = weights[: len(weights) // networks]
    like = of_one[0].new_empty(batch, *x.shape[1:])
    settings = {name: value for name, value in settings.items() if name in _SHAPING}
    states = new_states(like, _shapes(like, of_one, readout, **settings), (2 + symmetric) * networks)
    steps = order.new_empty(networks, count, phases)
    return betas.new_empty(networks, count), order.new_empty(networks, count), steps, order.new_empty(networks), states


@torch.library.custom_op("ceprop_cuda::refuse_gradient", mutates_args=())
def _refuse_gradient(inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """An op, so that torch.compile can trace a backward that will only fail if it is run; it takes the gradients so
    that it stays in the backward."""
    raise RuntimeError(
        "the fused kernels are not differentiable: train with EP, CEP or BPTT, or relax with backend='reference'"
    )


@_refuse_gradient.register_fake
def _(inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in inputs]


def _remember_inputs(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    ctx.inputs = inputs


def flat(nested: Any) -> list[Tensor]:
    if nested is None:
        return []
    return [nested] if isinstance(nested, Tensor) else [tensor for part in nested for tensor in flat(part)]


def _backward(ctx: Any, *gradients: Any) -> tuple:
    refused = iter(_refuse_gradient(flat(ctx.inputs), flat(gradients)))
    return tuple(
        next(refused) if isinstance(t, Tensor) else None if t is None else [next(refused) for _ in t]
        for t in ctx.inputs
    )


for _op in ("relax", "ep_step"):
    torch.library.register_autograd(f"ceprop_cuda::{_op}", _backward, setup_context=_remember_inputs)
