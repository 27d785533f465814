"""Networks of layers joined at random that settle, and the engine that runs them."""

from __future__ import annotations

import random
from functools import partial
from itertools import cycle
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from problems import Problem
from torch import Tensor
from variants import LOSSES

from ceprop_cuda import ops
from ceprop_cuda.spec.connections import ANSWER, INPUT, Connection, Convolution, Structure
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Dynamics, Nudge, state_shapes

# Stands where the modules ops and reference stand.
GRAPH_ENGINE = SimpleNamespace(
    relax=partial(ops.relax, engine="graph"),
    ep_step=partial(ops.ep_step, engine="graph"),
    cep_step=partial(ops.cep_step, engine="graph"),
)
SIDE = 8  # height and width of the input's maps; of layers at level 1 half, at level 2 a quarter
CLASSES = 4


def graph_variants(count: int = 24) -> list[dict[str, Any]]:
    """Settings that cover dynamics x feedback x loss, with the other columns going round beside them."""
    activations = cycle(ACTIVATIONS)
    losses = cycle(LOSSES)
    schedules = cycle(["synchronous", "asynchronous", "turns"])
    return [
        {
            "seed": number,
            "maps": number % 3 != 0,
            "dynamics": ("prototypical", "energy")[number // 2 % 2],
            "feedback": ("tied", "free")[number % 2],
            "activation": next(activations),
            "schedule": next(schedules),
            **next(losses),
        }
        for number in range(count)
    ]


def name_of_graph(variant: dict[str, Any]) -> str:
    words = [variant[key] for key in ("dynamics", "schedule", "feedback", "activation", "loss", "at")]
    kind = "maps" if variant["maps"] else "dense"
    return "-".join([f"{kind}{variant['seed']}", *words] + ["readout"] * variant.get("readout", False))


def build_graph(variant: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> tuple[Problem, Nudge]:
    """New tensors at every call, the same for the same arguments; ``dtype`` only rounds them."""
    draw = random.Random(variant["seed"])
    structure, levels = _structure(draw, variant["maps"], variant.get("readout", False))
    numbers = torch.Generator().manual_seed(1000 * variant["seed"] + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=numbers, dtype=torch.float64)

    channels = [draw.randint(2, 5) for _ in levels]
    if not variant.get("readout"):
        channels[structure.output] = CLASSES
    of_input = (2, SIDE, SIDE) if variant["maps"] else (7,)
    sizes = [(c,) if level is None else (c, *[SIDE >> level] * 2) for c, level in zip(channels, levels, strict=True)]
    weights = []
    for below, above, made in structure.connections:
        shape_below = of_input if below == INPUT else sizes[below]
        kernel = [] if made is None else [3 if made.padding == (1, 1) else 1] * 2
        shape = (channels[above], prod(shape_below) if made is None else shape_below[0], *kernel)
        if below == INPUT:
            scale = 0.6 / prod(shape[1:]) ** 0.5
        else:  # of a norm of 0.45 in a chain, less where more connections meet
            ways = sum(layer in (below, above) for c in structure.connections for layer in c[:2])
            scale = 0.45 * min(1, 4 / ways) / ((shape[0] * prod(kernel)) ** 0.5 + prod(shape[1:]) ** 0.5)
        weights.append((scale * normal(*shape)).to(dtype))
    inner = structure.inner
    feedback = [0.8 * weights[e].flip(0).roll(1, 1).contiguous() for e in inner]
    if variant.get("readout"):
        weights.append((0.5 * normal(CLASSES, prod(sizes[structure.output]))).to(dtype))
    has_bias = [draw.random() < 0.7 for _ in weights]
    arriving = [sum(c.above == of.above for c in structure.connections) for of in structure.connections] + [1]
    biases = [
        ((0.1 + 0.4 * uniform(len(w))) / count).to(dtype) if b else None
        for w, b, count in zip(weights, has_bias, arriving, strict=False)
    ]
    schedule = "synchronous" if variant["schedule"] == "turns" else variant["schedule"]
    activation = variant["activation"]
    settings = Dynamics(
        activation, variant.get("output_activation", activation), variant["dynamics"], 0.3, True, schedule
    )
    if variant["schedule"] == "turns":
        structure = Structure(structure.connections, structure.output, _turns(draw, structure.layers))
    if variant.get("readout"):
        joined = (*structure.connections, Connection(structure.output, ANSWER))
        structure = Structure(joined, structure.output, structure.turns)
    circuit = Circuit(weights, biases, feedback if variant["feedback"] == "free" else None, settings, structure)
    x = uniform(3, *of_input).to(dtype)
    assert [tuple(s) for s in sizes] == state_shapes(circuit, x.shape[2:])
    target = F.one_hot(torch.randint(CLASSES, (3,), generator=numbers), CLASSES).to(dtype)
    return Problem(circuit, x, target), Nudge(target, 0.4, variant["at"], variant["loss"])


def _structure(draw: random.Random, maps: bool, readout: bool) -> tuple[Structure, list[int | None]]:
    """Layers in a random order, each above some of those before it; and of each its level, None if it is dense."""
    depth = draw.randint(3, 5)
    levels: list[int | None] = [None] * depth
    if maps:
        of_maps = depth if readout and draw.random() < 0.5 else depth - draw.randint(1, 2)
        levels = [*sorted(draw.randint(0, 2) for _ in range(of_maps)), *[None] * (depth - of_maps)]
    ends = []
    for above in range(depth):
        ends += [(draw.choice(range(INPUT, above)), above) for _ in range(draw.randint(1, 3))]
    for below in range(depth - 1):  # what no connection leaves leads to the output
        if all(b != below for b, _ in ends):
            ends.append((below, depth - 1))
    if maps and all(levels[above] is None for below, above in ends if below == INPUT):
        ends.append((INPUT, 0))
    draw.shuffle(ends)
    number = list(range(depth))
    draw.shuffle(number)

    def connection(below: int, above: int) -> Connection:
        from_level, to_level = 0 if below == INPUT else levels[below], levels[above]
        named = INPUT if below == INPUT else number[below], number[above]
        if to_level is None:
            return Connection(*named)
        assert from_level is not None
        return Connection(*named, _convolution(draw, 1 << (to_level - from_level)))

    joined = tuple(connection(*pair) for pair in ends)
    return Structure(joined, number[depth - 1]), [levels[number.index(layer)] for layer in range(depth)]


def _convolution(draw: random.Random, factor: int) -> Convolution:
    """One that makes maps smaller by ``factor``, with a kernel of 3 and a padding of 1, or a kernel of 1."""
    padding = draw.choice([(1, 1), (0, 0)])
    pool = draw.choice(["max", "avg", "none"])
    if pool == "none":
        return Convolution((factor, factor), padding, pool)
    return Convolution((1, 1), padding, pool, (factor, factor))


def _turns(draw: random.Random, layers: int) -> tuple[tuple[int, ...], ...]:
    order = list(range(layers))
    draw.shuffle(order)
    cut = draw.randint(1, layers - 1)
    return tuple(order[:cut]), tuple(order[cut:])
