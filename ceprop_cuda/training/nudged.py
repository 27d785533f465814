"""What rules with a nudged phase share, among them EP and continual EP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments.checks import tolerance_or_none
from ..arguments.choices import Gate, NudgeAt, Nudging, Precision, Update
from ..backends import Kernels
from ..records import StepResult
from ..spec import reference
from ..spec.dynamics import Circuit, Nudge
from .rule import Rule
from .setting import Check, flag, number, setting, whole, word


def _of_free_feedback(check: Check) -> Check:
    """What ``check`` says, but that only a network with free feedback may have something other than None or False."""

    def checked(rule: Rule, name: str, value: Any) -> Any:
        value = check(rule, name, value)
        if value and rule.net.free_feedback is None:
            raise ValueError(f"{name}={value!r} needs a network with feedback='free', got tied feedback")
        return value

    return checked


class Work(NamedTuple):
    """What a training step does, which decides what it costs and what the theorem says of it."""

    free_steps: int
    nudged_steps: int
    symmetric: bool
    shared_update: bool
    accumulate: bool = False  # a contrast of every nudged step, with the weights at rest
    continual: bool = False  # a contrast of every nudged step, after which the weights move
    weight_decay: bool = False
    update: Update = "auto"


class NudgedRule(Rule):
    """A rule that learns from how a nudge moves the states: what ``theorem.compare`` and ``plan`` take.

    The settings are explained at :class:`ceprop_cuda.EP`. ``work`` and ``moved`` say what sets one such rule apart from
    another.
    """

    nudged_steps: int = setting(whole(1), kw_only=False)
    beta: float = setting(number(lambda value: value != 0, "a finite number other than 0"), kw_only=False)
    nudging: Nudging = setting(word(Nudging), default="positive")
    nudge_at: NudgeAt | None = setting(lambda rule, _, at: rule.net.nudging_point(at, None)[0], default=None)
    shared_update: bool = setting(_of_free_feedback(flag), default=False)
    gate: Gate | None = setting(_of_free_feedback(word(None | Gate)), default=None)
    tolerance: float | None = setting(lambda _, _name, value: tolerance_or_none(value), default=None)
    precision: Precision = setting(word(Precision), default="exact", decides=False)

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.gate is not None and self.shared_update:
            raise ValueError(f"gate={self.gate!r} is not for shared_update=True, the update of tied weights")

    def free_phase(self, circuit: Circuit, x: Tensor) -> reference.Relaxed:
        return self.relaxed(circuit, x, self.free_steps, self.tolerance)

    def kernels(self) -> Kernels:
        return Kernels(self.precision, self.engine)

    @property
    def is_symmetric(self) -> bool:
        """Whether there is a phase with +beta and one with -beta."""
        return self.nudging == "symmetric"

    def work(self) -> Work:
        """Of a training step."""
        return Work(self.free_steps, self.nudged_steps, self.is_symmetric, self.shared_update)

    def moved(self, circuit: Circuit, contrast: reference.PerParameter) -> Circuit:
        """What ``circuit`` is after a nudged step with this contrast, if the weights move at every step."""
        return circuit

    def nudge(self, target: Tensor, beta: float | None = None) -> Nudge:
        """Towards ``target``; ``beta`` None: with the sign that the setting has."""
        assert self.nudge_at is not None  # its check has filled in the default
        return Nudge(target, self.beta if beta is None else beta, self.nudge_at, self.loss_kind())

    def drawn_beta(self) -> float:
        """``beta``; of "random_sign" with a sign drawn by torch's global generator."""
        is_negative = self.nudging == "random_sign" and torch.rand((), device="cpu").item() < 0.5
        return -self.beta if is_negative else self.beta

    def nudged_result(self, nudge: Nudge, ran: reference.EPResult | reference.CEPResult) -> StepResult:
        minus = ran.nudged_states[1] if self.is_symmetric else []
        return StepResult(nudge.loss, nudge.target, ran.output, ran.free_states, ran.steps, ran.nudged_states[0], minus)
