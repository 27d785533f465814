"""Whether contenders compute the same: asked before anything is timed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..training import groups_of
from .cases import Case, needed_gflop
from .contenders import Build

# Relative, ||a - b|| / ||b||, of states and of what the step does to each parameter. In float32 the latter is what
# rounding leaves of small differences: only slips are looked for there.
TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-3, 0.05)}
FULL_CHECK_GFLOP = 5.0


class Disagreement(Exception):
    """A contender computed something else than the reference."""


def shortened(case: Case) -> Case:
    """The case with a few steps of each kind: enough for every part of the algorithm to act on the next step."""
    return case.of_steps(min(case.free_steps, 5), min(case.nudged_steps, 3))


def to_check(case: Case) -> Case:
    """What is checked in float64: all steps, or a few where all would take long."""
    return case if needed_gflop(case) <= FULL_CHECK_GFLOP else shortened(case)


def outcome(case: Case, build: Build, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The states at the ends of the phases of one step, and what it did to the parameters, or would do by plain SGD if
    it left gradients."""
    before, x, y = case.problem(dtype)
    net = copy.deepcopy(before)
    states = build(case, net)(x, y)
    if case.relaxes_only:
        return states, []
    rates = {p: group["lr"] for group in groups_of(net, case.preset.lr) for p in group["params"]}
    pairs = zip(net.parameters(), before.parameters(), strict=True)
    return states, [p.detach() - q.detach() if p.grad is None else -rates[p] * p.grad for p, q in pairs]


def assert_agreement(
    case: Case, name: str, got: tuple[list[Tensor], list[Tensor]], expected: tuple[list[Tensor], list[Tensor]]
) -> None:
    """Disagreement if the outcome of contender ``name`` is not the expected one."""
    dtype = expected[0][0].dtype
    for what, tolerance, ours, theirs in zip(("state", "change"), TOLERANCES[dtype], got, expected, strict=True):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            error = relative_error(a, b)
            if not error <= tolerance:
                raise Disagreement(
                    f"{case.name}: {name} disagrees with the reference in {dtype}: {what} {index} is off by "
                    f"{error:.1e}, at most {tolerance:.0e} is allowed"
                )


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return ((a - b).norm() / b.norm()).item()
