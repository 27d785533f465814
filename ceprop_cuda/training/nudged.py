"""What EP and continual EP share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import one_of, real_number, whole_number
from ..networks import Network
from ..records import StepResult
from ..spec import reference
from ..spec.dynamics import Nudge
from ..spec.gates import GATES
from .rule import Rule

NUDGINGS = ("positive", "random_sign", "symmetric")


class NudgedRule(Rule):
    """What EP and continual EP share: the nudged phase."""

    def __init__(
        self,
        net: Network,
        free_steps: int,
        nudged_steps: int,
        beta: float,
        nudging: str,
        nudge_at: str | None,
        loss: str | None,
        shared_update: bool,
        backend: str,
        tolerance: float | None,
        precision: str,
        gate: str | None,
    ) -> None:
        super().__init__(net, free_steps, loss, nudge_at, backend)
        self.nudged_steps = nudged_steps
        self.beta = beta
        self.nudging = nudging
        self.shared_update = shared_update
        self.tolerance = tolerance
        self.precision = precision
        self.gate = gate
        self.refuse_wrong_settings()

    def _checked_nudged_steps(self, nudged_steps: object) -> int:
        return whole_number("nudged_steps", nudged_steps, 1)

    def _checked_beta(self, beta: object) -> float:
        return real_number("beta", beta, lambda value: value != 0, "a finite number other than 0")

    def _checked_nudging(self, nudging: str) -> str:
        return one_of("nudging", nudging, NUDGINGS)

    def _checked_shared_update(self, shared_update: bool) -> bool:
        shared_update = one_of("shared_update", shared_update, (True, False))
        if shared_update and self.net.free_feedback is None:
            raise ValueError("shared_update=True needs a network with feedback='free', got tied feedback")
        return shared_update

    def _checked_gate(self, gate: str | None) -> str | None:
        gate = one_of("gate", gate, GATES)
        if gate is not None and self.net.free_feedback is None:
            raise ValueError(f"gate={gate!r} needs a network with feedback='free', got tied feedback")
        return gate

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.gate is not None and self.shared_update:
            raise ValueError(f"gate={self.gate!r} is not for shared_update=True, the update of tied weights")

    def _nudge(self, target: Tensor) -> Nudge:
        sign = -1 if self.nudging == "random_sign" and torch.rand((), device="cpu").item() < 0.5 else 1
        return Nudge(target, sign * self.beta, self.nudge_at, self.loss)

    def _nudged_result(self, target: Tensor, ran: reference.EPResult | reference.CEPResult) -> StepResult:
        return StepResult(
            self.loss,
            target,
            ran.output,
            ran.free_states,
            ran.steps,
            ran.nudged_states[0],
            ran.nudged_states[1] if self.nudging == "symmetric" else [],
        )
