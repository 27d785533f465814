"""Equilibrium propagation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..backends import Kernels, engine_for, exact
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from ..spec.dynamics import Circuit
from ..spec.reference import PerParameter
from .groups import OfAllGroups, OfGroupsOrNone, Rates, rate
from .moving import MovingRule, call_kernels, kernels_of_many, one, rates_by_connection
from .nudged import Work
from .rule import Rule, add_to_grads
from .samples import Samples
from .setting import flag, setting


def _rates_or_none(rule: Rule, name: str, lr: float | Sequence[float] | None) -> tuple[float, ...] | None:
    return None if lr is None else rates_by_connection(rule, name, lr)


class EP(MovingRule):
    """Equilibrium propagation: free phase, nudged phase, one contrast per batch (arXiv 1905.13633, 2006.03824).

    With r and r' the states at the ends of the free and of the nudged phase (in energy dynamics rho of them), r[-1] the
    input, and tied feedback:

        dL/dW[l] ~ -(r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B)

    Free feedback and ``shared_update``: see ``ceprop_cuda.spec.reference.contrast``.

    Without ``lr`` the rule computes gradients, and an optimizer of yours moves the parameters. With it the rule moves
    them itself, as torch.optim.SGD would, by :meth:`step` or, many batches in one call, :meth:`learn`:

        g <- momentum g + (gradient + weight_decay p),    p <- p - lr g

    Args:
        net: the network, which making a rule does not change. Several rules may work on one.
        free_steps, nudged_steps: lengths T and K of the phases.
        beta: strength of the nudge; may be negative, not 0.
        nudging: "positive" (as ``beta`` says), "random_sign" (a fair coin on its sign per batch, from torch's global
            generator) or "symmetric" (a phase each with +beta and -beta, contrast over 2 beta).
        nudge_at: "state", rho(a) + beta (y - s) (2005.04168), or "drive", rho(a + beta (y - s)) (2006.03824).
            None: "state", with a readout "drive".
        loss: "mse", ||y - s||^2 / 2, or "cross_entropy" (linear output units or a readout). None: "mse", with a
            readout "cross_entropy".
        accumulate: sum the contrasts of consecutive nudged steps (2005.04168); differs for free feedback only.
        shared_update: forward and feedback weights both get the update of tied ones (Kolen-Pollack, 2006.03824).
        backend: "auto", "fused" or "reference".
        engine: as for :class:`ceprop_cuda.training.Rule`.
        tolerance: None, or end a phase already after 4, 8, 12, ... of its steps if the last of them moved no unit of
            any sample of the batch by more than this. 0 ends it only where further steps would change nothing.
        precision: "exact", or "tf32" of float32 on a GPU since Ampere: PyTorch's operators compute the steps' products
            from factors that are rounded to 11 bits. Sums, states, parameters and contrasts stay exact float32. The
            reference is always exact, and ``backend="auto"`` runs it where there are no such products, as on the CPU.
        gate: of free feedback, a factor rho'(a) on what every unit has moved by, s'[l] - s[l], before it enters the
            update of W[l], b[l] and V[l+1]. "unit": a is the unit's whole drive, as Theorem 1 of arXiv 2005.04169 asks.
            "connection": a is only what comes through the connection that learns, W[l] s[l-1] + b[l] for W[l] and
            b[l], V[l+1]^T s[l+1] for V[l+1], as an earlier version of the authors' code had it. None: no factor. The
            drives are those at the free state, or with ``accumulate`` those of each nudged step.
        lr: learning rate of each connection, as for :class:`ceprop_cuda.CEP`. None: the rule moves nothing.
        momentum, weight_decay: of these steps, as torch.optim.SGD's.

    Raises:
        ValueError, TypeError: a setting is none of the choices, or the network cannot have it.
    """

    accumulate: bool = setting(flag, default=False)
    lr: float | Sequence[float] | None = setting(_rates_or_none, default=None, kind=OfGroupsOrNone)
    momentum: float = setting(lambda _, name, value: rate(name, value), default=0.0, kind=OfAllGroups)
    weight_decay: float = setting(lambda _, name, value: rate(name, value), default=0.0, kind=OfAllGroups)

    has_momentum = True

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.has_rates:
            return
        groups = self.own_sgd.param_groups  # read here, as a step asks
        given = next((name for name in ("momentum", "weight_decay") if any(group[name] for group in groups)), None)
        if given:
            raise ValueError(
                f"{given} is of the rule's own steps, which need lr=: give it, or {given} to your optimizer"
            )

    def settings(self) -> dict[str, Any]:
        own = {} if self.has_rates else dict.fromkeys(("lr", "momentum", "weight_decay"))
        return {name: value for name, value in super().settings().items() if name not in own}

    def work(self) -> Work:
        return super().work()._replace(accumulate=self.accumulate)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add EP's estimate of the loss gradient to ``p.grad`` of every parameter that requires grad, and run the
        parameters' hooks, as ``loss.backward()`` does.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit, or no parameter requires grad; no gradient was
                changed.
            RuntimeError: within ``torch.inference_mode()``.
        """
        circuit = self.circuit_to_train()
        x = self.net.check_input(circuit, x)
        y = self.net.check_nudge_target(circuit, x, y)
        result, gradients = self._estimate(circuit, x, y, self.drawn_beta())
        add_to_grads(circuit, gradients)
        return result

    def step_settings(self) -> dict[str, Any]:
        return super().step_settings() | {"accumulate": self.accumulate}

    def moved_by(self, circuit: Circuit, x: Tensor, y: Tensor, beta: float, rates: Rates) -> StepResult:
        kernels = kernels_of_many(self, circuit, x)
        if kernels is not None:
            return self._descend(kernels, circuit, x, y, beta, rates)
        result, gradients = self._estimate(circuit, x, y, beta)
        of_biases = [connection for connection, b in enumerate(circuit.biases) if b is not None]
        connections = [
            *range(len(circuit.weights)),
            *of_biases,
            *(circuit.structure.inner if circuit.free_feedback else ()),
        ]
        for p, gradient, connection in zip(circuit.parameters(), gradients.parameters(), connections, strict=True):
            if p.requires_grad:
                g = gradient.add(p, alpha=rates.weight_decay)
                if rates.momentum:
                    g = self.momentum_of(p).mul_(rates.momentum).add_(g)
                p.sub_(g, alpha=rates.lr[connection])
        return result

    def _descend(
        self, kernels: Kernels, circuit: Circuit, x: Tensor, y: Tensor, beta: float, rates: Rates
    ) -> StepResult:
        """By the call for many batches, which is told of one: so the bits are the same."""
        order, nudge = torch.arange(len(x), device="cpu")[None, None], self.nudge(y, beta)
        before = ops.with_own_readout(circuit)
        ran = call_kernels(kernels, [self], [circuit], [rates], Samples(x, y, None), order, one(beta), one(rates.lr))
        free, *nudged = ran.states[0]
        minus = nudged[1] if self.is_symmetric else []
        output = reference.logits(before, free)
        result = StepResult(nudge.loss, y, output, free, ran.steps[0, 0], nudged[0], minus)
        refuse_not_finite(self.net.layers, circuit, x, result)
        return result

    def _estimate(self, circuit: Circuit, x: Tensor, y: Tensor, beta: float) -> tuple[StepResult, PerParameter]:
        nudge = self.nudge(y, beta)
        engine = engine_for(self.backend, self.kernels(), circuit, x, self.gate)
        with exact(x):
            ran = engine.ep_step(circuit, x, nudge, **self.step_settings())
        learned = [] if engine.stores_only_finite else ran.gradients.parameters()
        result = self.nudged_result(nudge, ran)
        refuse_not_finite(self.net.layers, circuit, x, result, learned)
        return result, ran.gradients
