"""What learning rules share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backends import BACKENDS, PRECISIONS, backend_module, exact
from ..checks import one_of, tolerance_or_none, whole_number
from ..networks import Network
from ..records import StepResult
from ..spec import reference
from ..spec.dynamics import Circuit


class Rule:
    """What the rules share: a network, its free phase and its loss.

    A setting is checked whenever it is set, by the method ``_checked_<setting>``, which returns what is kept. One that
    is wrong when the rule is made is refused at once, one that is set later by the next call.
    """

    _wrong: dict[str, Exception]
    net: Network
    free_steps: int
    loss: str
    nudge_at: str
    backend: str
    tolerance: float | None = None  # the rules with a nudged phase take these
    precision: str = "exact"

    def __init__(self, net: Network, free_steps: int, loss: str | None, nudge_at: str | None, backend: str) -> None:
        vars(self)["_wrong"] = {}  # the errors of settings that are wrong, by name
        self.net = net
        self.free_steps = free_steps
        nudge_at, loss = self.net.nudging_point(nudge_at, loss)
        vars(self).update(
            nudge_at=nudge_at, loss=loss
        )  # checked together: each by itself may not fit the other's default
        self.backend = backend

    def __setattr__(self, name: str, value: Any) -> None:
        if check := getattr(self, f"_checked_{name}", None):
            self._wrong.pop(name, None)
            try:
                value = check(value)
            except (ValueError, TypeError) as error:
                if name not in vars(self):
                    raise
                self._wrong[name] = error
        super().__setattr__(name, value)

    def refuse_wrong_settings(self) -> None:
        """Raise the ValueError or TypeError of a setting that was set since the rule was made."""
        for error in self._wrong.values():
            raise type(error)(*error.args)

    def _checked_net(self, net: object) -> Network:
        if isinstance(net, Network):
            return net
        kind = type(net).__name__
        if isinstance(getattr(net, "module", None), Network):
            raise TypeError(
                f"net must be a ceprop_cuda.Network, got a {kind} around one: give its .module, and average every "
                "p.grad over the processes yourself"
            )
        hint = ": make one of it by Network(model, input_shape)" if isinstance(net, nn.Sequential) else ""
        raise TypeError(f"net must be a ceprop_cuda.Network, got {kind}{hint}")

    def _checked_free_steps(self, free_steps: object) -> int:
        return whole_number("free_steps", free_steps, 0)

    def _checked_nudge_at(self, nudge_at: str | None) -> str:
        return self.net.nudging_point(nudge_at, self.loss)[0]

    def _checked_loss(self, loss: str | None) -> str:
        return self.net.nudging_point(self.nudge_at, loss)[1]

    def _checked_backend(self, backend: str) -> str:
        return one_of("backend", backend, BACKENDS)

    def _checked_tolerance(self, tolerance: object) -> float | None:
        return tolerance_or_none(tolerance)

    def _checked_precision(self, precision: str) -> str:
        return one_of("precision", precision, PRECISIONS)

    def _circuit_to_train(self) -> Circuit:
        """The network's circuit, if there is something to learn."""
        self.refuse_wrong_settings()
        circuit = self.net.circuit()
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "learning within torch.inference_mode() would leave parameters or gradients that no later training can "
                "use: use torch.no_grad(), or nothing at all"
            )
        if not any(p.requires_grad for p in circuit.parameters()):
            raise ValueError("no parameter of the network requires grad, so there is nothing to learn")
        return circuit

    @torch.no_grad()
    def predict(self, x: Tensor, y: Tensor) -> StepResult:
        """The free phase alone: loss, output and states; x ``(B, *input_shape)``, y as for a training step."""
        self.refuse_wrong_settings()
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        module, of_kernels = backend_module(self.backend, circuit, x, precision=self.precision)
        with exact(x):
            ran = module.relax(circuit, x, self.free_steps, tolerance=self.tolerance, **of_kernels)
            output = reference.logits(circuit, ran.states)
        return StepResult(self.loss, target, output, ran.states, ran.steps)


def add_to_grads(circuit: Circuit, gradients: reference.PerParameter) -> None:
    """p.grad += gradient for every parameter that requires grad, and the hooks of parameters.

    Where there are no hooks, the tensors are kept in place of a copy, which would take a fifth of a small network's
    step."""
    pairs = [(p, g) for p, g in zip(circuit.parameters(), gradients.parameters(), strict=True) if p.requires_grad]
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p, _ in pairs) or _is_distributed():
        torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])
        return
    for p, gradient in pairs:
        p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def _is_distributed() -> bool:
    """DistributedDataParallel's hooks are not seen from Python."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
