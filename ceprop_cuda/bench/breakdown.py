"""Where the time of a fused training step on the CPU goes, measured from outside: by differences between calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..networks import Network
from ..spec.dynamics import Nudge
from .cases import Case
from .measure import Timed, interleaved, prepared, restore

CASES = ("ep-1h-b20", "c-ep-1h-b20", "ep-2h-b20", "c-ep-2h-b20", "c-vf-2h-b20")


@dataclass(frozen=True)
class Part:
    """A part of one training step."""

    case: str
    threads: int
    part: str
    steps: int  # of the dynamics that are made in it
    ms: float  # the parts add up to a step; what is too small to measure may come out below 0
    share: float  # of the step


def run(case: Case, threads: int, rounds: int) -> list[Part]:
    """The parts of a training step of ``case`` by the fused kernels:

    - rule: what the learning rule does in Python around the op;
    - call: a call of an op that has next to nothing to do, 0 steps of a network of one unit per layer;
    - load: what 0 steps of the case's network take longer than that: weights and states are packed and unpacked;
    - free steps, nudged steps: what the second half of each takes, twice; in continual EP with the updates;
    - once: the rest: the drive by the input, and what is done at the end, EP's contrast or the storing of new weights.
    """
    torch.set_num_threads(threads)
    free, nudged = case.free_steps, case.nudged_steps
    one_unit = replace(case.preset, hidden=(1,) * len(case.preset.hidden))
    calls = {
        "rule": _timed(case, _rule),
        "op": _timed(case, _op),
        "half the free steps": _timed(case.of_steps(free // 2, nudged), _op),
        "half the nudged steps": _timed(case.of_steps(free, nudged // 2), _op),
        "no steps": _timed(case, _no_steps),
        "nothing": _timed(replace(case, preset=one_unit, batch=1, inputs=1, classes=1), _no_steps),
    }
    # The best round: what other programs take away would not cancel in differences.
    ms = {name: 1e3 * min(seconds) for name, seconds in interleaved(calls, rounds).items()}
    parts = {
        "rule": (0, ms["rule"] - ms["op"]),
        "call": (0, ms["nothing"]),
        "load": (0, ms["no steps"] - ms["nothing"]),
        "free steps": (free, (ms["op"] - ms["half the free steps"]) * free / (free - free // 2)),
        "nudged steps": (nudged, (ms["op"] - ms["half the nudged steps"]) * nudged / (nudged - nudged // 2)),
    }
    parts["once"] = (0, ms["rule"] - sum(part for _, part in parts.values()))
    return [Part(case.name, threads, name, steps, part, part / ms["rule"]) for name, (steps, part) in parts.items()]


def _timed(case: Case, make: Callable[[Case, Network, Tensor, Tensor], Callable[[], object]]) -> Timed:
    net, x, y = case.problem(torch.float32)
    return prepared(make(case, net, x, y), partial(restore, net, copy.deepcopy(net)))


def _rule(case: Case, net: Network, x: Tensor, y: Tensor) -> Callable[[], object]:
    rule = case.preset.rule(net, "fused", gradients_only=True)
    if rule.moves_parameters:
        return lambda: rule.step(x, y)

    def step() -> None:
        net.zero_grad()
        rule.backward(x, y)

    return step


def _op(case: Case, net: Network, x: Tensor, y: Tensor) -> Callable[[], object]:
    circuit, nudge = net.circuit(), Nudge(y, case.preset.beta)
    op = partial(ops.cep_step, lr=case.preset.lr) if case.preset.continual else ops.ep_step
    return torch.no_grad()(partial(op, circuit, x, nudge, free_steps=case.free_steps, nudged_steps=case.nudged_steps))


def _no_steps(case: Case, net: Network, x: Tensor, _: Tensor) -> Callable[[], object]:
    circuit = net.circuit()
    return torch.no_grad()(partial(ops.relax, circuit, x, 0))
