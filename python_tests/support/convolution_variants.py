"""The kinds of convolutional network that the kernels are tested on, and problems on them that converge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, pairwise
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from problems import Problem
from torch import Tensor
from variants import LOSSES

from ceprop_cuda.spec.connections import Convolution, chain
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Dynamics, Nudge, state_shapes


class Chain(NamedTuple):
    """Convolutions, then dense layers, on a batch of images."""

    image: tuple[int, int, int]
    batch: int
    channels: tuple[int, ...]
    kernels: tuple[tuple[int, int], ...]
    convolutions: tuple[Convolution, ...]
    dense: tuple[int, ...]


def same(padding: int = 0, pool: str = "max") -> Convolution:
    return Convolution((1, 1), (padding, padding), pool)


# Off every tile and on it; windows that leave something over at the edges; kernels larger than the register file; more
# channels than one slice of the way down; more samples than are taken at a time; two dense layers.
CHAINS = [
    Chain((2, 13, 11), 3, (5, 18), ((3, 2), (2, 3)), (same(1), same()), (7, 4)),
    Chain((1, 12, 12), 19, (20, 37), ((5, 5), (3, 3)), (same(), same(1)), (10,)),
    Chain((3, 9, 10), 4, (17,), ((1, 1),), (Convolution((1, 1), (0, 0), "max", (2, 3)),), (6, 5)),
    Chain((2, 11, 12), 5, (6, 9), ((3, 3), (3, 3)), (Convolution((2, 1), (1, 0), "none"), same(1, "avg")), (4,)),
    Chain(
        (1, 15, 14), 2, (4, 33), ((3, 3), (7, 7)), (same(1, "none"), Convolution((1, 2), (3, 3), "max", (3, 3))), (3,)
    ),
    Chain(
        (4, 16, 16),
        2,
        (16, 32, 32),
        ((3, 3), (3, 3), (2, 2)),
        (same(1), same(1, "avg"), Convolution((2, 2), (0, 0))),
        (8,),
    ),
    Chain(
        (2, 6, 7),
        7,
        (3, 2),
        ((2, 3), (2, 2)),
        (same(0, "none"), Convolution((1, 1), (2, 0), "avg", (2, 1))),
        (41, 9, 3),
    ),
    Chain((1, 8, 8), 1, (2, 3), ((3, 3), (2, 2)), (same(), Convolution((3, 2), (2, 1), "none")), (2,)),
]


OF_UNITS = [*ACTIVATIONS, "sigmoid"]  # one more than there are losses below, so that all meet


def chain_variants(count: int = len(CHAINS)) -> list[dict[str, Any]]:
    """Settings that cover dynamics x feedback x loss, with the other columns going round beside them, among them the
    numbers of so many chains."""
    chains, activations, biases = cycle(range(count)), cycle(OF_UNITS), cycle([True, True, False])
    asynchronous = cycle([False, True, False])
    return [
        {
            "chain": next(chains),
            "dynamics": dynamics,
            "feedback": feedback,
            "activation": next(activations),
            "bias": next(biases),
            "schedule": "asynchronous" if next(asynchronous) else "synchronous",
            **loss,
        }
        for dynamics in ("prototypical", "energy")
        for feedback in ("tied", "free")
        for loss in LOSSES + LOSSES[::2]
    ]


def name_of_chain(variant: dict[str, Any]) -> str:
    words = [variant[key] for key in ("dynamics", "schedule", "feedback", "activation", "loss", "at")]
    return "-".join([f"chain{variant['chain']}", *words] + ["readout"] * variant.get("readout", False))


def build_chain(
    variant: dict[str, Any], dtype: torch.dtype, seed: int = 0, chains: Sequence[Chain] = CHAINS
) -> tuple[Problem, Nudge]:
    """New tensors at every call, the same for the same arguments; ``dtype`` only rounds them. Weights are drawn as
    ``random_problem`` draws them, so that steps contract."""
    drawn = chains[variant["chain"]]
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def inner(shape: tuple[int, ...]) -> Tensor:
        above, below = shape[0] * prod(shape[2:]), prod(shape[1:])
        return (0.45 / (above**0.5 + below**0.5) * normal(*shape)).to(dtype)

    readout = variant.get("readout", False)
    activation = variant["activation"]
    settings = Dynamics(
        activation, variant.get("output_activation", activation), variant["dynamics"], 0.3, True, variant["schedule"]
    )
    channels = pairwise((drawn.image[0], *drawn.channels))
    shapes: list[tuple[int, ...]] = [(up, low, *k) for (low, up), k in zip(channels, drawn.kernels, strict=True)]
    of_maps = chain(len(shapes), drawn.convolutions)
    convolved = Circuit([torch.empty(shape) for shape in shapes], [], None, settings, of_maps)
    flat = prod(state_shapes(convolved, drawn.image[1:])[-1])
    shapes += [(up, low) for low, up in pairwise((flat, *drawn.dense))]
    weights = [(0.6 / prod(shapes[0][1:]) ** 0.5 * normal(*shapes[0])).to(dtype), *map(inner, shapes[1:])]
    biases: list[Tensor | None] = [None] * len(shapes)
    if variant["bias"]:
        biases = [(0.1 + 0.5 * torch.rand(s[0], generator=draw, dtype=torch.float64)).to(dtype) for s in shapes]
    feedback = None if variant["feedback"] == "tied" else [inner(s) for s in shapes[1 : len(shapes) - readout]]
    x = torch.rand(drawn.batch, *drawn.image, generator=draw, dtype=torch.float64).to(dtype)
    classes = drawn.dense[-1]
    labels = torch.randint(classes, (drawn.batch,), generator=draw)
    structure = chain(len(shapes), drawn.convolutions, readout)
    circuit = Circuit(weights, biases, feedback, settings, structure)
    target = F.one_hot(labels, classes).to(dtype)
    return Problem(circuit, x, target), Nudge(target, 0.4, variant["at"], variant["loss"])


def build_ties(variant: dict[str, Any], chains: Sequence[Chain] = CHAINS) -> tuple[Problem, Nudge]:
    """Units that saturate, and equal inputs of which many make equal maxima. Every number has few binary digits, so
    that no drive is rounded while no weight moves, whatever the order of its sum."""
    problem, nudge = build_chain({**variant, "activation": "hard_sigmoid"}, torch.float64, chains=chains)
    weights = [w.sign() / 8 for w in problem.circuit.weights]
    biases = [None if b is None else (b * 8).round() / 8 for b in problem.circuit.biases]
    circuit = replace(problem.circuit, weights=weights, biases=biases)
    return problem._replace(circuit=circuit, x=problem.x.round()), replace(nudge, beta=0.5)
