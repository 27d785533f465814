"""Whether both copies of tied weights learn the same."""

from __future__ import annotations

from typing import Any

import torch
from problems import relative_error
from variants import VARIANTS, build, copy_of


def assert_both_copies_stay_the_same(module: Any, schedule: str) -> None:
    """W is held twice, for the way up and the way down. With zero further learning, the next call's states tell whether
    what was written back is what the phase went on with."""
    problem, nudge = build({**VARIANTS[0], "shape": ((20, 33, 40, 7), 7), "schedule": schedule}, torch.float64)
    one_call, two_calls = copy_of(problem.circuit), copy_of(problem.circuit)
    lr = [0.1] * 3
    ran = module.cep_step(one_call, problem.x, nudge, free_steps=0, nudged_steps=2, lr=lr)
    module.cep_step(two_calls, problem.x, nudge, free_steps=0, nudged_steps=1, lr=lr)
    first = module.relax(problem.circuit, problem.x, 1, None, nudge).states
    second = module.relax(two_calls, problem.x, 1, first, nudge).states
    for a, b in zip(second, ran.nudged_states[0], strict=True):
        assert relative_error(a, b) < 1e-14
