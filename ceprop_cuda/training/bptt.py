"""Backpropagation through time, the yardstick of EP."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import backend_module, exact
from ..checks import whole_number
from ..networks import Network
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from .rule import Rule, add_to_grads


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

    def __init__(
        self, net: Network, free_steps: int, unrolled_steps: int, *, loss: str | None = None, backend: str = "auto"
    ) -> None:
        super().__init__(net, free_steps, loss, None, backend)
        self.unrolled_steps = unrolled_steps
        self.refuse_wrong_settings()

    def _checked_unrolled_steps(self, unrolled_steps: object) -> int:
        return whole_number("unrolled_steps", unrolled_steps, 1)

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.unrolled_steps > self.free_steps:
            raise ValueError(f"unrolled_steps must be at most free_steps={self.free_steps}, got {self.unrolled_steps}")

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add the loss gradient to every ``p.grad``; as :meth:`EP.backward`."""
        circuit = self._circuit_to_train()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        module, of_kernels = backend_module(self.backend, circuit, x, precision="exact")
        with exact(x):
            start = module.relax(circuit, x, self.free_steps - self.unrolled_steps, **of_kernels)
            ran = reference.bptt(circuit, x, target, self.loss, unrolled_steps=self.unrolled_steps, states=start.states)
        refuse_not_finite(self.net.layers, circuit, x, target, ran, ran.gradients.parameters())
        add_to_grads(circuit, ran.gradients)
        steps = start.steps + self.unrolled_steps
        return StepResult(self.loss, target, ran.output, ran.free_states, steps)
