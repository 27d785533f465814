"""Continual equilibrium propagation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import ops
from ..backends import backend_module, exact
from ..checks import one_of, real_number, shown
from ..networks import Network
from ..records import StepResult, refuse_not_finite
from ..spec import reference
from ..spec.dynamics import Circuit
from .nudged import NudgedRule

UPDATES = ("auto", "literal", "low_rank")


class CEP(NudgedRule):
    """Continual equilibrium propagation: the weights move at every nudged step (arXiv 2005.04168, 2005.04169).

    With tied feedback C-EP, with free feedback C-VF. After every nudged step, from r to r' in :class:`EP`'s words,

        W[l] <- W[l] + lr[l] ((r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B) - weight_decay W[l])

    and with free feedback, where d[l] is s'[l] - s[l], times rho' of its drive if ``gate`` says so,

        W[l] <- W[l] + lr[l] (d[l]^T r[l-1] / (beta B) - weight_decay W[l]),    V[l] likewise by r[l]^T d[l-1]

    and the next step is made with these weights. A readout moves once, at the end. The rule is its own optimizer: plain
    gradient steps on every connection whose parameters require grad; ``lr`` 0 keeps one as it is, too.

    Args:
        lr: learning rate of each connection, input side first (with a readout, its rate comes last), of a graph in the
            order given; one number: all. May be set anew between steps.
        weight_decay: every update also subtracts ``lr * weight_decay * p``, as torch.optim.SGD does.
        the others: as for :class:`EP`. "symmetric" goes back towards the free state by ``nudged_steps`` un-nudged steps
            between its two nudged phases.
            A phase that ``tolerance`` ends early leaves out the weight decay of its remaining steps, too. The drives of
            ``gate`` are those of each step; with "unit", C-VF follows Theorem 1 of arXiv 2005.04169.
        update: which form of the exact continual update the kernels run: "literal" moves the weights at every step,
            "low_rank" keeps them constant and adds the change as products with B x B matrices wherever that is exact,
            "auto" takes the one with fewer operations, see :func:`ceprop_cuda.plan`. All give the same numbers up to
            rounding; the reference has only one form.

    Raises:
        ValueError, TypeError: as :class:`EP`; or a rate is negative, or there is not one for every connection.
    """

    def __init__(
        self,
        net: Network,
        free_steps: int,
        nudged_steps: int,
        beta: float,
        lr: float | Sequence[float],
        *,
        nudging: str = "positive",
        nudge_at: str | None = None,
        loss: str | None = None,
        shared_update: bool = False,
        weight_decay: float = 0.0,
        backend: str = "auto",
        tolerance: float | None = None,
        precision: str = "exact",
        update: str = "auto",
        gate: str | None = None,
    ) -> None:
        phases = (free_steps, nudged_steps, beta, nudging, nudge_at, loss)
        super().__init__(net, *phases, shared_update, backend, tolerance, precision, gate)
        self.lr = self._checked_lr(lr)
        self.weight_decay = weight_decay
        self.update = update

    def _checked_lr(self, lr: float | Sequence[float]) -> tuple[float, ...]:
        connections = len(self.net.weights)
        is_iterable = isinstance(lr, Iterable) and getattr(lr, "shape", None) != ()  # a tensor without axes is not
        rates = list(lr) if is_iterable else [lr] * connections  # type: ignore[arg-type]
        if len(rates) != connections:
            raise ValueError(f"lr must hold {connections} rates, input side first, got {len(rates)}: {shown(lr)}")
        return tuple(
            real_number(f"lr[{connection}]", rate, lambda value: value >= 0, "a finite number >= 0")
            for connection, rate in enumerate(rates)
        )

    def _checked_weight_decay(self, weight_decay: object) -> float:
        return real_number("weight_decay", weight_decay, lambda value: value >= 0, "a finite number >= 0")

    def _checked_update(self, update: str) -> str:
        return one_of("update", update, UPDATES)

    def _rates_to_train(self, circuit: Circuit) -> list[float]:
        """``lr``, but 0 for a connection that does not require grad; ValueError if only a part of one does."""
        rates = []
        for connection, rate in enumerate(self.lr):
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
            rates.append(rate if requires == {True} else 0.0)
        return rates

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
        circuit = self._circuit_to_train()
        rates = self._rates_to_train(circuit)
        x = self.net.check_input(circuit, x)
        nudge = self._nudge(self.net.check_target(circuit, x, y))
        forms = {"precision": self.precision, "update": self.update}
        module, of_kernels = backend_module(self.backend, circuit, x, gate=self.gate, **forms)
        if module is reference:
            ops.check_writable(circuit)  # as the kernels do
        with exact(x):
            ran = module.cep_step(
                circuit,
                x,
                nudge,
                free_steps=self.free_steps,
                nudged_steps=self.nudged_steps,
                lr=rates,
                tolerance=self.tolerance,
                symmetric=self.nudging == "symmetric",
                shared_update=self.shared_update,
                weight_decay=self.weight_decay,
                gate=self.gate,
                **of_kernels,
            )
        learned = ran.circuit.parameters() if module is reference else []
        refuse_not_finite(self.net.layers, circuit, x, nudge.target, ran, learned)
        for p, moved in zip(circuit.parameters(), ran.circuit.parameters(), strict=True):
            if moved is not p:  # the reference returns new tensors, the kernels write in place
                p.copy_(moved)
        return self._nudged_result(nudge.target, ran)
