"""The learning rules: equilibrium propagation, continual EP, and BPTT as the yardstick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from . import reference
from .dynamics import Circuit, Nudge
from .network import BACKENDS, PRECISIONS, Network, backend_module, one_of, real_number, tolerance_or_none, whole_number

NUDGINGS = ("positive", "random_sign", "symmetric")
UPDATES = ("auto", "literal", "low_rank")


@dataclass
class StepResult:
    """What one call of a rule saw. ``output`` ``(B, classes)`` is the free phase's output units or logits, ``target``
    ``(B, classes)`` what they should be; states are lists, the input side first, of ``(B, n_l)`` or, of convolutions,
    ``(B, C, H, W)`` after the pooling; ``steps`` int64 holds the number of steps made in each phase that was run, in
    order: free, +beta (random_sign: its sign), and when symmetric -beta, before it continual EP's way back."""

    loss_kind: str  # "mse" or "cross_entropy"
    target: Tensor
    output: Tensor
    free_states: list[Tensor]
    steps: Tensor
    nudged_states: list[Tensor] = field(default_factory=list)  # end of the phase with +beta (random_sign: its sign)
    nudged_minus_states: list[Tensor] = field(default_factory=list)  # end of the phase with -beta, when symmetric

    @cached_property
    def loss(self) -> Tensor:
        """The free phase's loss, mean over the batch, 0-d. Computed when first asked for: a small network's step takes
        little longer."""
        return reference.loss(self.output, self.target, self.loss_kind)


class Rule:
    """What the rules share: a network, its free phase and its loss."""

    tolerance: float | None = None  # the rules with a nudged phase take these
    precision: str = "exact"

    def __init__(self, net: Network, free_steps: int, loss: str | None, nudge_at: str | None, backend: str) -> None:
        free_steps = whole_number("free_steps", free_steps, 0)
        one_of("backend", backend, BACKENDS)
        self.net = net
        self.free_steps = free_steps
        self.nudge_at, self.loss = net.nudging_point(nudge_at, loss)
        self.backend = backend
        net.free_steps = free_steps

    @torch.no_grad()
    def predict(self, x: Tensor, y: Tensor) -> StepResult:
        """The free phase alone: loss, output and states; x ``(B, *input_shape)``, y as for a training step."""
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        module, of_kernels = backend_module(self.backend, circuit, x, precision=self.precision)
        ran = module.relax(circuit, x, self.free_steps, tolerance=self.tolerance, **of_kernels)
        output = reference.logits(circuit, ran.states)
        return StepResult(self.loss, target, output, ran.states, ran.steps)


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
    ) -> None:
        nudged_steps = whole_number("nudged_steps", nudged_steps, 1)
        beta = real_number("beta", beta, lambda value: value != 0, "a finite number other than 0")
        one_of("nudging", nudging, NUDGINGS)
        one_of("shared_update", shared_update, (True, False))
        if shared_update and net.free_feedback is None:
            raise ValueError("shared_update=True needs a network with feedback='free', got tied feedback")
        one_of("precision", precision, PRECISIONS)
        tolerance = tolerance_or_none(tolerance)
        super().__init__(net, free_steps, loss, nudge_at, backend)
        self.nudged_steps = nudged_steps
        self.beta = beta
        self.nudging = nudging
        self.shared_update = shared_update
        self.tolerance = tolerance
        self.precision = precision

    def _nudge(self, target: Tensor) -> Nudge:
        sign = -1 if self.nudging == "random_sign" and torch.rand(()).item() < 0.5 else 1
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


class EP(NudgedRule):
    """Equilibrium propagation: free phase, nudged phase, one contrast per batch (arXiv 1905.13633, 2006.03824).

    With r and r' the states at the ends of the free and of the nudged phase (in energy dynamics rho of them), r[-1] the
    input, and tied feedback:

        dL/dW[l] ~ -(r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B)

    Free feedback and ``shared_update``: see ``ceprop_cuda.reference.contrast``.

    Args:
        net: the network; its ``free_steps`` becomes ``free_steps``.
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
        tolerance: None, or end a phase already after 4, 8, 12, ... of its steps if the last of them moved no unit of
            any sample of the batch by more than this. 0 ends it only where further steps would change nothing.
        precision: "exact", or on a GPU "tf32" or "bf16": tensor cores compute the steps' products, whose factors are
            rounded to 11 or 8 bits; sums, states, parameters and contrasts stay float32. The reference is always exact,
            and what ``backend="auto"`` runs where the kernels have no such products, as on the CPU.

    Raises:
        ValueError, TypeError: a setting is none of the choices, or the network cannot have it.
    """

    def __init__(
        self,
        net: Network,
        free_steps: int,
        nudged_steps: int,
        beta: float,
        nudging: str = "positive",
        nudge_at: str | None = None,
        loss: str | None = None,
        accumulate: bool = False,
        shared_update: bool = False,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        precision: str = "exact",
    ) -> None:
        one_of("accumulate", accumulate, (True, False))
        phases = (free_steps, nudged_steps, beta, nudging, nudge_at, loss)
        super().__init__(net, *phases, shared_update, backend, tolerance, precision)
        self.accumulate = accumulate

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add EP's estimate of the loss gradient to ``p.grad`` of every parameter that requires grad.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit; no gradient was changed.
        """
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        nudge = self._nudge(self.net.check_target(circuit, x, y))
        module, of_kernels = backend_module(self.backend, circuit, x, precision=self.precision)
        ran = module.ep_step(
            circuit,
            x,
            nudge,
            free_steps=self.free_steps,
            nudged_steps=self.nudged_steps,
            tolerance=self.tolerance,
            symmetric=self.nudging == "symmetric",
            accumulate=self.accumulate,
            shared_update=self.shared_update,
            **of_kernels,
        )
        result = self._nudged_result(nudge.target, ran)
        _add_to_grads(circuit, ran.gradients)
        return result


class CEP(NudgedRule):
    """Continual equilibrium propagation: the weights move at every nudged step (arXiv 2005.04168, 2005.04169).

    With tied feedback C-EP, with free feedback C-VF. After every nudged step, from r to r' in :class:`EP`'s words,

        W[l] <- W[l] + lr[l] ((r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B) - weight_decay W[l])

    and the next step is made with these weights. A readout moves once, at the end. The rule is its own optimizer: plain
    gradient steps on every parameter, whether it requires grad or not; ``lr`` 0 keeps a connection as it is.

    Args:
        lr: learning rate of each connection, input side first (with a readout, its rate comes last); one number: all.
        weight_decay: every update also subtracts ``lr * weight_decay * p``, as torch.optim.SGD does.
        the others: as for :class:`EP`. "symmetric" goes back towards the free state by ``nudged_steps`` un-nudged steps
            between its two nudged phases.
            A phase that ``tolerance`` ends early leaves out the weight decay of its remaining steps, too.
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
        nudging: str = "positive",
        nudge_at: str | None = None,
        loss: str | None = None,
        shared_update: bool = False,
        weight_decay: float = 0.0,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        precision: str = "exact",
        update: str = "auto",
    ) -> None:
        one_of("update", update, UPDATES)
        phases = (free_steps, nudged_steps, beta, nudging, nudge_at, loss)
        super().__init__(net, *phases, shared_update, backend, tolerance, precision)
        rates = list(lr) if isinstance(lr, Iterable) else [lr] * len(net.weights)
        if len(rates) != len(net.weights):
            raise ValueError(f"lr must hold {len(net.weights)} rates, input side first, got {len(rates)}: {lr!r}")
        self.lr = [
            real_number(f"lr[{connection}]", rate, lambda value: value >= 0, "a finite number >= 0")
            for connection, rate in enumerate(rates)
        ]
        self.weight_decay = real_number("weight_decay", weight_decay, lambda value: value >= 0, "a finite number >= 0")
        self.update = update

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """One batch: free phase, nudged phase and continual updates of the parameters, in place.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit; no parameter was changed.
        """
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        nudge = self._nudge(self.net.check_target(circuit, x, y))
        module, of_kernels = backend_module(self.backend, circuit, x, precision=self.precision, update=self.update)
        ran = module.cep_step(
            circuit,
            x,
            nudge,
            free_steps=self.free_steps,
            nudged_steps=self.nudged_steps,
            lr=self.lr,
            tolerance=self.tolerance,
            symmetric=self.nudging == "symmetric",
            shared_update=self.shared_update,
            weight_decay=self.weight_decay,
            **of_kernels,
        )
        for p, moved in zip(circuit.parameters(), ran.circuit.parameters(), strict=True):
            if moved is not p:  # the reference returns new tensors, the kernels write in place
                p.copy_(moved)
        return self._nudged_result(nudge.target, ran)


class BPTT(Rule):
    """Backpropagation through the last steps of the free phase: the exact gradient that EP estimates (1905.13633).

    Args:
        net: the network; its ``free_steps`` becomes ``free_steps``.
        free_steps: number T of steps of the free phase, the unrolled ones among them.
        unrolled_steps: number K <= ``free_steps`` of last steps that the gradient goes back through.
        loss: as for :class:`EP`.
        backend: of the steps before the unrolled ones, which always run in PyTorch under autograd.

    Raises:
        ValueError, TypeError: a setting is none of the choices, or the network cannot have it.
    """

    def __init__(
        self, net: Network, free_steps: int, unrolled_steps: int, loss: str | None = None, backend: str = "auto"
    ) -> None:
        unrolled_steps = whole_number("unrolled_steps", unrolled_steps, 1)
        super().__init__(net, free_steps, loss, None, backend)
        if unrolled_steps > free_steps:
            raise ValueError(f"unrolled_steps must be at most free_steps={free_steps}, got {unrolled_steps}")
        self.unrolled_steps = unrolled_steps

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add the loss gradient to every ``p.grad``; x and y as for :meth:`EP.backward`."""
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        module, of_kernels = backend_module(self.backend, circuit, x, precision="exact")
        start = module.relax(circuit, x, self.free_steps - self.unrolled_steps, **of_kernels)
        ran = reference.bptt(circuit, x, target, self.loss, unrolled_steps=self.unrolled_steps, states=start.states)
        _add_to_grads(circuit, ran.gradients)
        steps = start.steps + self.unrolled_steps
        return StepResult(self.loss, target, ran.output, ran.free_states, steps)


def _add_to_grads(circuit: Circuit, gradients: reference.PerParameter) -> None:
    """p.grad += gradient for every parameter with gradients; keeps the tensors where there was none."""
    for p, gradient in zip(circuit.parameters(), gradients.parameters(), strict=True):
        if p.requires_grad:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
