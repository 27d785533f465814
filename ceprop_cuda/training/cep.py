"""Continual equilibrium propagation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..arguments.checks import shown
from ..arguments.choices import Update
from ..backends import Kernels, engine_for, exact
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from ..spec.dynamics import Circuit
from .groups import OfAllGroups, OfGroups, groups_of, rate, rates_and_decay
from .nudged import NudgedRule, Work
from .rule import Rule
from .setting import setting, word


def _rates(rule: Rule, name: str, lr: float | Sequence[float]) -> tuple[float, ...]:
    connections = len(rule.net.weights)
    is_number = not isinstance(lr, Iterable) or getattr(lr, "shape", None) == ()  # a tensor without axes is iterable
    rates = [lr] * connections if is_number else list(lr)  # type: ignore[arg-type]
    if len(rates) != connections:
        raise ValueError(f"{name} must hold {connections} rates, input side first, got {len(rates)}: {shown(lr)}")
    return tuple(rate(f"{name}[{connection}]", value) for connection, value in enumerate(rates))


class CEP(NudgedRule):
    """Continual equilibrium propagation: the weights move at every nudged step (arXiv 2005.04168, 2005.04169).

    With tied feedback C-EP, with free feedback C-VF. After every nudged step, from r to r' in :class:`EP`'s words,

        W[l] <- W[l] + lr[l] ((r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B) - weight_decay W[l])

    and with free feedback, where d[l] is s'[l] - s[l], times rho' of its drive if ``gate`` says so,

        W[l] <- W[l] + lr[l] (d[l]^T r[l-1] / (beta B) - weight_decay W[l]),    V[l] likewise by r[l]^T d[l-1]

    and the next step is made with these weights. A readout moves once, at the end. The rule is its own optimizer: plain
    gradient steps on every connection whose parameters require grad; ``lr`` 0 keeps one as it is, too. Its rates lie in
    :attr:`optimizer`, so that ``torch.optim.lr_scheduler.StepLR(rule.optimizer, 10)`` and the like move them.

    Args:
        lr: learning rate of each connection, input side first (with a readout, its rate comes last), of a graph in the
            order given; one number: all. May be set anew between steps, here or in the groups of ``optimizer``.
        weight_decay: every update also subtracts ``lr * weight_decay * p``, as torch.optim.SGD does.
        the others: as for :class:`EP`. "symmetric" goes back towards the free state by ``nudged_steps`` un-nudged steps
            between its two nudged phases.
            A phase that ``tolerance`` ends early leaves out the weight decay of its remaining steps, too. The drives of
            ``gate`` are those of each step; with "unit", C-VF follows Theorem 1 of arXiv 2005.04169.
        update: which form of the exact continual update the kernels of a CPU run: "literal" moves the weights at every
            step, "low_rank" keeps them constant and adds the change as products with B x B matrices wherever that is
            exact, "auto" takes the one with fewer operations, see :func:`ceprop_cuda.plan`. All give the same numbers
            up to rounding. On a GPU the weights always move at every step. The reference has only that form.

    Raises:
        ValueError, TypeError: as :class:`EP`; or a rate is negative, or there is not one for every connection.
    """

    lr: float | Sequence[float] = setting(_rates, kw_only=False, kind=OfGroups)
    weight_decay: float = setting(lambda _, name, value: rate(name, value), default=0.0, kind=OfAllGroups)
    update: Update = setting(word(Update), default="auto", decides=False)

    moves_parameters = True

    @cached_property
    def optimizer(self) -> torch.optim.SGD:
        """A parameter group for each connection, whose ``lr`` and ``weight_decay`` are the rule's: give it to any
        scheduler of torch. Nobody needs to call its ``step`` or ``zero_grad``."""
        return torch.optim.SGD(groups_of(self.net, [0.0] * len(self.net.weights)))

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        rates_and_decay(self.optimizer, len(self.net.weights))

    def settings(self) -> dict[str, Any]:
        """... with the rates before any scheduler moved them."""
        groups = self.optimizer.param_groups
        return super().settings() | {"lr": tuple(group.get("initial_lr", group["lr"]) for group in groups)}

    def kernels(self) -> Kernels:
        return Kernels(self.precision, self.engine, self.update)

    def work(self) -> Work:
        return super().work()._replace(continual=True, weight_decay=self.weight_decay != 0, update=self.update)

    def moved(self, circuit: Circuit, contrast: reference.PerParameter) -> Circuit:
        return reference.moved(circuit, contrast, *rates_and_decay(self.optimizer, len(self.net.weights)))

    def _rates_to_train(self, circuit: Circuit) -> tuple[list[float], float]:
        """The rate of each connection, 0 for one that does not require grad, and the weight decay, of groups that were
        found right; ValueError if only a part of a connection requires grad."""
        groups = self.optimizer.param_groups
        rates, decay = [float(group["lr"]) for group in groups], float(groups[0]["weight_decay"])
        for connection in range(len(rates)):
            # Of a connection W, b and V, as far as they exist.
            parts = [circuit.weights[connection], circuit.biases[connection]]
            if circuit.free_feedback is not None and connection in circuit.structure.inner:
                parts.append(circuit.feedback(connection))
            requires = {p.requires_grad for p in parts if p is not None}
            if len(requires) == 2:
                raise ValueError(
                    f"some parameters of connection {connection} require grad and others do not: continual EP moves "
                    "the weights, the bias and the feedback weights of a connection at one rate, or none of them"
                )
            if requires == {False}:
                rates[connection] = 0.0
        return rates, decay

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """One batch: free phase, nudged phase and continual updates of the parameters, in place.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit, or no parameter requires grad, or only a part
                of a connection does; no parameter was changed.
            RuntimeError: within ``torch.inference_mode()``.
        """
        circuit = self.circuit_to_train()
        rates, decay = self._rates_to_train(circuit)
        x = self.net.check_input(circuit, x)
        nudge = self.drawn_nudge(self.net.check_nudge_target(circuit, x, y))
        engine = engine_for(self.backend, self.kernels(), circuit, x, self.gate)
        with exact(x):
            ran = engine.cep_step(
                circuit,
                x,
                nudge,
                free_steps=self.free_steps,
                nudged_steps=self.nudged_steps,
                lr=rates,
                tolerance=self.tolerance,
                symmetric=self.is_symmetric,
                shared_update=self.shared_update,
                weight_decay=decay,
                gate=self.gate,
            )
        learned = [] if engine.stores_only_finite else ran.circuit.parameters()
        result = self.nudged_result(nudge, ran)
        refuse_not_finite(self.net.layers, circuit, x, result, learned)
        if ran.circuit is not circuit:  # the reference returns new tensors, the kernels write in place
            for p, moved in zip(circuit.parameters(), ran.circuit.parameters(), strict=True):
                p.copy_(moved)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # or schedulers warn that it has made no step
        return result
