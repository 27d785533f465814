"""Backpropagation through time, the yardstick of EP."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import exact
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from .rule import Rule, add_to_grads
from .setting import setting, whole


class BPTT(Rule):
    """Backpropagation through the last steps of the free phase: the exact gradient that EP estimates (1905.13633).

    Args:
        net: the network, which making a rule does not change. Several rules may work on one.
        free_steps: number T of steps of the free phase, the unrolled ones among them.
        unrolled_steps: number K <= ``free_steps`` of last steps that the gradient goes back through.
        loss: as for :class:`EP`.
        backend: of the steps before the unrolled ones, which always run in PyTorch under autograd.

    Raises:
        ValueError, TypeError: a setting is none of the choices, or the network cannot have it.
    """

    unrolled_steps: int = setting(whole(1), kw_only=False)

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.unrolled_steps > self.free_steps:
            raise ValueError(f"unrolled_steps must be at most free_steps={self.free_steps}, got {self.unrolled_steps}")

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add the loss gradient to every ``p.grad``; as :meth:`EP.backward`."""
        circuit = self.circuit_to_train()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        loss = self.loss_kind()
        start = self.relaxed(circuit, x, self.free_steps - self.unrolled_steps)
        with exact(x):
            ran = reference.bptt(circuit, x, target, loss, unrolled_steps=self.unrolled_steps, states=start.states)
        result = StepResult(loss, target, ran.output, ran.free_states, start.steps + self.unrolled_steps)
        refuse_not_finite(self.net.layers, circuit, x, result, ran.gradients.parameters())
        add_to_grads(circuit, ran.gradients)
        return result
