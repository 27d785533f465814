"""Continual equilibrium propagation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..arguments.choices import Update
from ..backends import Kernels, engine_for, exact
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from ..spec.dynamics import Circuit
from .groups import OfAllGroups, OfGroups, Rates, rate
from .moving import MovingRule, rates_by_connection
from .nudged import Work
from .setting import setting, word


class CEP(MovingRule):
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

    lr: float | Sequence[float] = setting(rates_by_connection, kw_only=False, kind=OfGroups)
    weight_decay: float = setting(lambda _, name, value: rate(name, value), default=0.0, kind=OfAllGroups)
    update: Update = setting(word(Update), default="auto", decides=False)

    def kernels(self) -> Kernels:
        return Kernels(self.precision, self.engine, self.update)

    def many_settings(self) -> dict[str, Any]:
        return super().many_settings() | {"continual": True}

    def work(self) -> Work:
        return super().work()._replace(continual=True, weight_decay=self.weight_decay != 0, update=self.update)

    def moved(self, circuit: Circuit, contrast: reference.PerParameter) -> Circuit:
        rates = self.rates()
        return reference.moved(circuit, contrast, rates.lr, rates.weight_decay)

    def moved_by(self, circuit: Circuit, x: Tensor, y: Tensor, beta: float, rates: Rates) -> StepResult:
        nudge = self.nudge(y, beta)
        engine = engine_for(self.backend, self.kernels(), circuit, x, self.gate)
        with exact(x):
            ran = engine.cep_step(
                circuit, x, nudge, lr=rates.lr, weight_decay=rates.weight_decay, **self.step_settings()
            )
        learned = [] if engine.stores_only_finite else ran.circuit.parameters()
        result = self.nudged_result(nudge, ran)
        refuse_not_finite(self.net.layers, circuit, x, result, learned)
        if ran.circuit is not circuit:  # the reference returns new tensors, the kernels write in place
            for p, moved in zip(circuit.parameters(), ran.circuit.parameters(), strict=True):
                p.copy_(moved)
        return result
