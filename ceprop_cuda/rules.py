"""The learning rules: equilibrium propagation, continual EP, and BPTT as the yardstick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .backends import BACKENDS, PRECISIONS, backend_module, exact
from .checks import one_of, real_number, shown, tolerance_or_none, whole_number
from .network import Network
from .spec import reference
from .spec.dynamics import Circuit, Nudge
from .spec.gates import GATES

NUDGINGS = ("positive", "random_sign", "symmetric")
UPDATES = ("auto", "literal", "low_rank")


class Diverged(RuntimeError):
    """States, parameters or what is given are NaN or infinite. No parameter and no gradient has become so."""


class NotStored(Diverged):
    """A rule has stored nothing of a step, as its numbers are not finite."""


@dataclass
class StepResult:
    """What one call of a rule saw. ``output`` ``(B, classes)`` is the free phase's output units or logits, ``target``
    ``(B, classes)`` what they should be; states are lists in the order of the network's ``layers``, of ``(B, n_l)`` or,
    of convolutions, ``(B, C, H, W)`` after the pooling; ``steps`` int64 holds the number of steps made in each phase
    that was run, in order: free, +beta (random_sign: its sign), and when symmetric -beta, before it continual EP's way
    back."""

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

    def _lead_network(self) -> None:
        """The last of a rule's making, when every setting has been accepted."""
        self.net.free_steps = self.free_steps

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


class EP(NudgedRule):
    """Equilibrium propagation: free phase, nudged phase, one contrast per batch (arXiv 1905.13633, 2006.03824).

    With r and r' the states at the ends of the free and of the nudged phase (in energy dynamics rho of them), r[-1] the
    input, and tied feedback:

        dL/dW[l] ~ -(r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B)

    Free feedback and ``shared_update``: see ``ceprop_cuda.spec.reference.contrast``.

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
        gate: of free feedback, a factor rho'(a) on what every unit has moved by, s'[l] - s[l], before it enters the
            update of W[l], b[l] and V[l+1]. "unit": a is the unit's whole drive, as Theorem 1 of arXiv 2005.04169 asks.
            "connection": a is only what comes through the connection that learns, W[l] s[l-1] + b[l] for W[l] and
            b[l], V[l+1]^T s[l+1] for V[l+1], as an earlier version of the authors' code had it. None: no factor. The
            drives are those at the free state, or with ``accumulate`` those of each nudged step.

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
        gate: str | None = None,
    ) -> None:
        phases = (free_steps, nudged_steps, beta, nudging, nudge_at, loss)
        super().__init__(net, *phases, shared_update, backend, tolerance, precision, gate)
        self.accumulate = accumulate
        self._lead_network()

    def _checked_accumulate(self, accumulate: bool) -> bool:
        return one_of("accumulate", accumulate, (True, False))

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
        circuit = self._circuit_to_train()
        x = self.net.check_input(circuit, x)
        nudge = self._nudge(self.net.check_target(circuit, x, y))
        module, of_kernels = backend_module(self.backend, circuit, x, gate=self.gate, precision=self.precision)
        with exact(x):
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
                gate=self.gate,
                **of_kernels,
            )
        learned = ran.gradients.parameters() if module is reference else []
        _refuse_not_finite(self.net, x, nudge.target, ran, learned)
        result = self._nudged_result(nudge.target, ran)
        _add_to_grads(circuit, ran.gradients)
        return result


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
        gate: str | None = None,
    ) -> None:
        phases = (free_steps, nudged_steps, beta, nudging, nudge_at, loss)
        super().__init__(net, *phases, shared_update, backend, tolerance, precision, gate)
        self.lr = self._checked_lr(lr)
        self.weight_decay = weight_decay
        self.update = update
        self._lead_network()

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
        _refuse_not_finite(self.net, x, nudge.target, ran, learned)
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
        super().__init__(net, free_steps, loss, None, backend)
        self.unrolled_steps = unrolled_steps
        self.refuse_wrong_settings()
        self._lead_network()

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
        _refuse_not_finite(self.net, x, target, ran, ran.gradients.parameters())
        _add_to_grads(circuit, ran.gradients)
        steps = start.steps + self.unrolled_steps
        return StepResult(self.loss, target, ran.output, ran.free_states, steps)


def _add_to_grads(circuit: Circuit, gradients: reference.PerParameter) -> None:
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


def _refuse_not_finite(
    net: Network,
    x: Tensor,
    target: Tensor,
    ran: reference.EPResult | reference.CEPResult | reference.BPTTResult,
    learned: Sequence[Tensor] = (),
) -> None:
    """Raise NotStored, naming what it is, if a step's numbers are not finite. ``learned``: what is about to be stored;
    of the fused kernels nothing, as they have looked at it themselves, and say so by their steps.

    On a GPU their answer would have to be waited for; a Trainer asks for that of some batches at once."""
    if learned:
        is_fine = all(is_finite(tensor) for tensor in (x, target, *net.parameters(), *ran.free_states, *learned))
    else:
        assert not isinstance(ran, reference.BPTTResult)
        is_fine = ran.steps.is_cuda or ran.steps[0].item() >= 0
    if not is_fine:
        nudged = [] if isinstance(ran, reference.BPTTResult) else ran.nudged_states
        raise NotStored(what_is_not_finite(net, x, target, [ran.free_states, *nudged]))


def what_is_not_finite(net: Network, x: Tensor, target: Tensor, phases: Sequence[Sequence[Tensor]]) -> str:
    """What makes a step's numbers too large, in words. ``phases``: the states at the end of each."""
    for name, given in (("the inputs hold", x), ("the target holds", target)):
        if not given.isfinite().all():
            return f"{name} NaN or infinite values"
        if not is_finite(given):
            return f"{name} values up to {given.abs().max().item():.2g}, of which products are not finite"
    bad = [
        f"states of layer {name}"
        for layer, name in enumerate(net.layers)
        if not all(is_finite(states[layer]) for states in phases)
    ]
    bad += bad_parameters(net)
    return f"{', '.join(bad) or 'what states teach'} are not finite (learning rate too high?)"


def bad_parameters(net: Network) -> list[str]:
    """The parameters that are not finite, in words."""
    groups = (("weights", net.weights), ("biases", net.biases), ("feedback weights", net.feedback))
    return [
        f"{name} of connection {connection}"
        for name, parameters in groups
        for connection, p in enumerate(parameters)
        if p is not None and not is_finite(p)
    ]


def is_finite(tensor: Tensor) -> bool:
    """Whether products of two of its numbers are, too: as csrc/cpu/sanity.h has it."""
    limit = 2.0**56 if tensor.dtype == torch.float32 else 2.0**500
    return bool((tensor.detach().abs() <= limit).all())
