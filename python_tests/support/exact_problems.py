"""Problems on which EP meets BPTT exactly as beta shrinks, and what both find there, in one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from problems import Problem, random_problem
from torch import Tensor

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Circuit, Nudge
from ceprop_cuda.spec.reference import PerParameter

FREE_STEPS = 250  # enough for the free states of random problems to settle to rounding
NUDGED_STEPS = 12
BETAS = (0.001, 0.002, 0.004, 0.008)
HARD: dict[str, Any] = {"activation": "hard_sigmoid"}
HARD_ENERGY = HARD | {"dynamics": "energy"}
SMOOTH_ENERGY = {"activation": "tanh", "output_activation": "linear", "dynamics": "energy", "clip": False}


def vector(change: PerParameter) -> Tensor:
    """All changes in one vector."""
    return torch.cat([dp.flatten() for dp in change.parameters()])


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """The power of size with which errors fall, by least squares in log-log."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def random_states(circuit: Circuit, x: Tensor) -> list[Tensor]:
    return [torch.rand_like(s) for s in reference.resting_states(circuit, x)]


# Settings for which the theorem is exact as beta -> 0: dynamics that are a gradient (see above). The prototypical
# dynamics are one for hard units that keep to one linear piece of rho; outputs inside (0, 1) make nudging at the state
# and at the drive the same. The response to beta is nonlinear everywhere, even where all units are piecewise linear,
# because the nudge beta (y - s) acts on s as well: no error is linear or quadratic by accident, nor zero.
CROSS_ENTROPY = {"at": "drive", "loss": "cross_entropy"}
EXACT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "state": (HARD, {"at": "state"}),
    "drive": (HARD, {"at": "drive"}),
    "vector field": (HARD | {"feedback": "symmetric"}, {}),
    "cross entropy": (HARD | {"output_activation": "linear"}, CROSS_ENTROPY),
    "readout": (HARD | {"readout": True}, CROSS_ENTROPY),
    "energy hard": (HARD_ENERGY, {}),
    "energy tanh": (SMOOTH_ENERGY, CROSS_ENTROPY),
}


def exact_problem(name: str, schedule: str = "synchronous") -> tuple[Problem, Callable[[float], Nudge]]:
    """The problem ``name`` of EXACT, and its nudge as a function of beta."""
    of_problem, of_nudge = EXACT[name]
    problem = random_problem(
        **of_problem, schedule=schedule, seed=2
    )  # whose hidden layers hold saturated and unsaturated units
    return problem, lambda beta: Nudge(problem.target, beta, **of_nudge)


def bptt_vector(problem: Problem, nudge: Nudge, steps: int) -> Tensor:
    free = reference.relax(problem.circuit, problem.x, FREE_STEPS).states
    ran = reference.bptt(problem.circuit, problem.x, nudge.target, nudge.loss, unrolled_steps=steps, states=free)
    return vector(ran.gradients)


def ep_vector(problem: Problem, nudge: Nudge, steps: int = NUDGED_STEPS, **settings: bool) -> Tensor:
    ran = reference.ep_step(problem.circuit, problem.x, nudge, free_steps=FREE_STEPS, nudged_steps=steps, **settings)
    return vector(ran.gradients)
