"""Phases that end when the states have settled: problems, settings, and limits that are met exactly."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from variants import copy_of

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import Convolution, chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, Nudge
from ceprop_cuda.spec.reference import CEPResult, EPResult

TOLERANCE = 1e-5
LIMIT = 200
SIZES = (7, 33, 17, 5)  # off every tile
FAMILIES: list[dict[str, Any]] = [
    {"dynamics": dynamics, "feedback": feedback, "schedule": schedule}
    for dynamics, feedback, schedule in product(
        ("prototypical", "energy"), ("tied", "free"), ("synchronous", "asynchronous")
    )
]
LEARNING: list[dict[str, Any]] = [
    {"accumulate": False},
    {"accumulate": True},
    {"update": "literal"},
    {"update": "low_rank"},
    {"update": "literal", "weight_decay": 1e-4},
    {"update": "low_rank", "weight_decay": 1e-4},
]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings.values()))


def learn(module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> EPResult | CEPResult:
    """A step of EP, or with "update" of continual EP, of at most LIMIT steps a phase."""
    settings = {"free_steps": LIMIT, "nudged_steps": LIMIT, "tolerance": TOLERANCE, **settings}
    if "update" not in settings:
        return module.ep_step(circuit, x, nudge, **settings)
    if module is reference:
        del settings["update"]
    return module.cep_step(copy_of(circuit), x, nudge, **settings, lr=[0.05, 0.02, 0.01])


def assert_tolerances_are_exact(module: Any, dtype: torch.dtype, convolutions: tuple[Convolution, ...] = ()) -> None:
    """Units that go half the way to 1 at every step move by exactly 1/16 in the fourth. A limit a little smaller is not
    rounded to 1/16; one of 0 is reached where further steps change nothing."""
    settings = Dynamics("linear", "linear", "energy", dt=0.5)
    shapes = [*((1, 1, 1, 1) for _ in convolutions), (1, 1)]
    weights = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    biases: list[Tensor | None] = [torch.ones(1, dtype=dtype) for _ in shapes]
    circuit = Circuit(weights, biases, None, settings, chain(len(weights), convolutions))
    x = torch.zeros(shapes[0], dtype=dtype)
    end = 28 if dtype == torch.float32 else 56  # where 1 - 2^-steps has become 1
    for tolerance, steps in ((1 / 16, 4), (1 / 16 + 1e-12, 4), (1 / 16 - 1e-12, 8), (0.0, end), (1e-310, end)):
        found = module.relax(circuit, x, LIMIT, tolerance=tolerance)
        assert found.steps.tolist() == [steps]
        assert bool((torch.cat([s.flatten() for s in found.states]) == 1).all()) == (steps == end)
