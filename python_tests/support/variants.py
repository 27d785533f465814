"""The kinds of network and of learning that the kernels are tested on, and the tolerances, in one place."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from problems import Problem, random_problem

from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

# How far a kernel may be from the float64 reference: relative, ||a - b|| / ||b||, for states and parameters; for
# contrasts, which are differences of states over beta, the same over |beta|.
#   float64: at most `floor`. Worst seen 5e-15 (states), 1.5e-12 (contrasts times beta; nearly all of it rounding in the
#   reference, which subtracts two large products).
#   float32: at most `factor` times the largest error that the float32 reference makes in the same list, plus `floor`.
TOLERANCES = {
    torch.float64: {"factor": 0.0, "floor": 2e-12},
    torch.float32: {"factor": 2.0, "floor": 2e-7},
}

# What continual EP adds to a parameter is the difference of two parameters, and a hundredth of them: in float64 it is
# checked to this many times the floor of the states.
CHANGE_OVER_STATE = 100

# The reference subtracts two sums over all places of a map, the kernels take differences first: where the contrast is
# small beside the sums, nearly all of what lies between the two is the reference's rounding (measured against 80-bit
# sums at the same states: 1.5e-10 of the reference, 1.2e-13 of the kernels). In float64 contrasts of networks with
# convolutions are checked to this many times the floor of the others.
CONTRAST_OF_MAPS = 100

# Every pair of values of neighbouring columns occurs; all combinations would be thousands.
LOSSES: list[dict[str, Any]] = [
    {"loss": "mse", "at": "state"},
    {"loss": "mse", "at": "drive"},
    {"loss": "cross_entropy", "at": "drive", "output_activation": "linear"},
    {"loss": "cross_entropy", "at": "state", "output_activation": "linear"},
    {"loss": "cross_entropy", "at": "drive", "readout": True},
]
# Off every tile and on it; one unit; more samples than inputs (twice as many choose another form of the update).
SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((5, 3), 1),
    ((784, 64, 10), 20),
    ((20, 33, 7), 7),
    ((3, 1, 1, 2), 9),
    ((40, 31, 100, 10), 33),
    ((16, 32, 32), 24),
    ((2, 129, 65), 5),
    ((9, 8, 40, 6, 3), 13),
    ((12, 70, 80, 9), 3),  # fewer samples than units: the low-rank form of the continual update
]


def network_variants() -> list[dict[str, Any]]:
    """Settings that cover dynamics x feedback x loss, with the other columns going round beside them."""
    shapes, activations, biases = cycle(SHAPES), cycle(ACTIVATIONS), cycle([True, True, False])
    asynchronous = cycle([False] + [True] * 3 + [False] * 7)  # of no length that another cycle has
    variants = []
    for dynamics in ("prototypical", "energy"):
        for feedback in ("tied", "free"):
            for loss in LOSSES * 2:
                shape = next(shapes)
                while loss.get("readout") and len(shape[0]) < 3:
                    shape = next(shapes)
                variants.append(
                    {
                        "shape": shape,
                        "dynamics": dynamics,
                        "feedback": feedback,
                        "activation": next(activations),
                        "bias": next(biases),
                        "clip": len(variants) % 3 != 0,
                        "schedule": "asynchronous" if next(asynchronous) else "synchronous",
                        **loss,
                    }
                )
    return variants


def name_of(variant: dict[str, Any]) -> str:
    sizes, batch = variant["shape"]
    words = [variant[key] for key in ("dynamics", "schedule", "feedback", "activation", "loss", "at")]
    return "-".join([*map(str, sizes), f"B{batch}", *words] + ["readout"] * variant.get("readout", False))


def build(variant: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> tuple[Problem, Nudge]:
    settings = {key: value for key, value in variant.items() if key not in ("shape", "loss", "at")}
    sizes, batch = variant["shape"]
    problem = random_problem(sizes, batch, dt=0.3, dtype=dtype, seed=seed, **settings)
    return problem, Nudge(problem.target, 0.4, variant["at"], variant["loss"])


def copy_of(circuit: Circuit) -> Circuit:
    """The same circuit in tensors of its own: continual EP moves its circuit in place."""

    def clones(parameters: list) -> list:
        return [None if p is None else p.clone() for p in parameters]

    free = None if circuit.free_feedback is None else clones(circuit.free_feedback)
    return replace(circuit, weights=clones(circuit.weights), biases=clones(circuit.biases), free_feedback=free)


VARIANTS = network_variants()
