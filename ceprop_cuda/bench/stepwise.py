"""Phases in a Python loop, of any function that makes a step: how EP is simulated without kernels of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..spec.dynamics import Circuit, Nudge, logits, resting_states, step
from ..spec.reference import CEPResult, EPResult, PerParameter, Relaxed, contrast, count, moved


def learning_step(
    circuit: Circuit, x: Tensor, states: list[Tensor], nudge: Nudge, lr: Sequence[float]
) -> tuple[list[Tensor], Circuit]:
    """A nudged step of continual EP: the states after it, and the circuit with the parameters after it."""
    after = step(circuit, x, states, nudge)
    change = contrast(circuit, x, states, after, states, nudge.beta)
    return after, moved(circuit, change, lr, 0.0)


def gradients(circuit: Circuit, x: Tensor, free: list[Tensor], nudged: list[Tensor], beta: float) -> PerParameter:
    """EP's estimate: minus the contrast of the two states."""
    return contrast(circuit, x, free, nudged, free, -beta)


class Stepwise:
    """The reference's operations on tensors, or others of the same signatures, as an engine, without what the reference
    does on the host beside them.

    Each kind of step is a function of its own, which ``made`` makes of the given one. One nudged phase that ends after
    its steps, without a gate.
    """

    stores_only_finite = False

    def __init__(
        self,
        made: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        step: Callable[..., list[Tensor]] = step,
        learning_step: Callable[..., tuple[list[Tensor], Circuit]] = learning_step,
        gradients: Callable[..., PerParameter] = gradients,
    ) -> None:
        self._free_step = made(step)
        self._nudged_step = made(step)
        self._learning_step = made(learning_step)
        self._gradients = made(gradients)

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> str | None:
        return None if gate is None else f"this loop has no gate, got {gate!r}"

    def relax(self, circuit: Circuit, x: Tensor, steps: int, **others: Any) -> Relaxed:
        refuse(others)
        states = resting_states(circuit, x)
        for _ in range(steps):
            states = self._free_step(circuit, x, states)
        return Relaxed(states, count(x, steps))

    def ep_step(
        self, circuit: Circuit, x: Tensor, nudge: Nudge, *, free_steps: int, nudged_steps: int, **others: Any
    ) -> EPResult:
        refuse(others)
        states = free = self.relax(circuit, x, free_steps).states
        for _ in range(nudged_steps):
            states = self._nudged_step(circuit, x, states, nudge)
        change = self._gradients(circuit, x, free, states, nudge.beta)
        return EPResult(change, logits(circuit, free), free, [states], steps_of(x, free_steps, nudged_steps))

    def cep_step(
        self,
        circuit: Circuit,
        x: Tensor,
        nudge: Nudge,
        *,
        free_steps: int,
        nudged_steps: int,
        lr: Sequence[float],
        **others: Any,
    ) -> CEPResult:
        """The parameters of ``circuit`` move in place, as the kernels move them."""
        refuse(others)
        states = free = self.relax(circuit, x, free_steps).states
        output, moving = logits(circuit, free), circuit
        for _ in range(nudged_steps):
            states, moving = self._learning_step(moving, x, states, nudge, lr)
        for p, after in zip(circuit.parameters(), moving.parameters(), strict=True):
            p.copy_(after)
        return CEPResult(circuit, output, free, [states], steps_of(x, free_steps, nudged_steps))


def steps_of(x: Tensor, *phases: int) -> Tensor:
    """The steps of each phase as a tensor ``(phases,)`` beside ``x``."""
    return torch.cat([count(x, steps) for steps in phases])


def refuse(others: dict[str, Any]) -> None:
    """TypeError if there are settings of an engine that a contender does not know."""
    if others:
        raise TypeError(f"a contender takes the case's settings only, got {others}")
