"""What rules share that move the parameters themselves: rates of their own, and many batches in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..arguments.checks import shown
from ..backends import Kernels, engine_for, exact
from ..data import Normalisation
from ..records import NotStored, StepResult, what_is_not_finite
from ..spec.dynamics import Circuit
from .groups import Rates, groups_of, rate, rates_of
from .nudged import NudgedRule
from .rule import Rule
from .samples import Samples, checked_inputs, checked_orders, example_of


def rates_by_connection(rule: Rule, name: str, lr: float | Sequence[float]) -> tuple[float, ...]:
    """The check of a setting that is a rate for each connection, or one for all."""
    connections = len(rule.net.weights)
    is_number = not isinstance(lr, Iterable) or getattr(lr, "shape", None) == ()  # a tensor without axes is iterable
    rates = [lr] * connections if is_number else list(lr)  # type: ignore[arg-type]
    if len(rates) != connections:
        raise ValueError(f"{name} must hold {connections} rates, input side first, got {len(rates)}: {shown(lr)}")
    return tuple(rate(f"{name}[{connection}]", value) for connection, value in enumerate(rates))


@dataclass
class Learned:
    """What :meth:`MovingRule.learn` found out. Of the batches, in order: ``loss`` ``(N,)`` float64, that of the free
    phase, mean over the batch; ``wrong`` ``(N,)`` int64, how many samples' largest output is not their largest target;
    ``steps`` ``(N, phases)`` int64, as :class:`StepResult`'s. Of the last batch the states at the ends of its phases,
    as StepResult's."""

    loss: Tensor
    wrong: Tensor
    steps: Tensor
    free_states: list[Tensor]
    nudged_states: list[Tensor]
    nudged_minus_states: list[Tensor]


class NotStoredOf(NotStored):
    """The numbers of a batch are not finite. Its network is as the batch before left it."""

    def __init__(self, batch: int, reason: object) -> None:
        self.batch = batch  # which of the call, from 0
        self.reason = reason
        super().__init__(f"batch {batch + 1} of this call: {reason}")


class MovingRule(NudgedRule):
    """A rule that moves the parameters by rates that lie in the groups of its :attr:`optimizer`."""

    has_rates: bool = True
    has_momentum: bool = False

    @property
    def moves_parameters(self) -> bool:  # type: ignore[override]
        return self.has_rates

    @cached_property
    def own_sgd(self) -> torch.optim.SGD:
        return torch.optim.SGD(groups_of(self.net, [0.0] * len(self.net.weights)))

    @property
    def optimizer(self) -> torch.optim.SGD | None:
        """A parameter group for each connection, whose ``lr`` and ``weight_decay`` are the rule's: give it to any
        scheduler of torch. Nobody needs to call its ``step`` or ``zero_grad``. None if the rule has no rates."""
        return self.own_sgd if self.has_rates else None

    def refuse_wrong_settings(self) -> None:
        super().refuse_wrong_settings()
        if self.has_rates:
            self.rates()

    def rates(self) -> Rates:
        return rates_of(self.own_sgd, len(self.net.weights), self.has_momentum)

    def settings(self) -> dict[str, Any]:
        """... with the rates before any scheduler moved them."""
        if not self.has_rates:
            return super().settings()
        groups = self.own_sgd.param_groups
        return super().settings() | {"lr": tuple(group.get("initial_lr", group["lr"]) for group in groups)}

    def rates_to_train(self, circuit: Circuit) -> Rates:
        """The rates, of groups that were found right, with 0 for a connection that does not require grad; ValueError if
        only a part of a connection requires grad."""
        groups = self.own_sgd.param_groups
        lr = [float(group["lr"]) for group in groups]
        for connection in range(len(lr)):
            # Of a connection W, b and V, as far as they exist.
            parts = [circuit.weights[connection], circuit.biases[connection]]
            if circuit.free_feedback is not None and connection in circuit.structure.inner:
                parts.append(circuit.feedback(connection))
            requires = {p.requires_grad for p in parts if p is not None}
            if len(requires) == 2:
                raise ValueError(
                    f"some parameters of connection {connection} require grad and others do not: {type(self).__name__} "
                    "moves the weights, the bias and the feedback weights of a connection at one rate, or none of them"
                )
            if requires == {False}:
                lr[connection] = 0.0
        return Rates(lr, float(groups[0]["weight_decay"]), float(groups[0]["momentum"]))

    def note_step(self) -> None:
        """Or schedulers warn that the optimizer has made no step."""
        self.own_sgd._opt_called = True  # type: ignore[attr-defined]

    def momentum_of(self, p: Tensor) -> Tensor:
        """Where the optimizer keeps the momentum of a parameter; of one that does not require grad, anywhere."""
        if not p.requires_grad:
            return torch.zeros_like(p)
        state = self.own_sgd.state[p]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum_buffer"]
        return momentum

    def step_settings(self) -> dict[str, Any]:
        """What an engine is told of a step, beside the nudge and rates."""
        return {
            "free_steps": self.free_steps,
            "nudged_steps": self.nudged_steps,
            "tolerance": self.tolerance,
            "symmetric": self.is_symmetric,
            "shared_update": self.shared_update,
            "gate": self.gate,
        }

    def many_settings(self) -> dict[str, Any]:
        """What :func:`ceprop_cuda.ops.learn` is told, beside data and rates."""
        kind = {"continual": False, "nudge_at": self.nudge_at, "loss": self.loss_kind()}
        return kind | self.step_settings()

    def moved_by(self, circuit: Circuit, x: Tensor, y: Tensor, beta: float, rates: Rates) -> StepResult:
        """:meth:`step` by this beta and these rates; ``x`` and ``y`` as the network's checks return them."""
        raise NotImplementedError(f"{type(self).__name__} has no moved_by()")

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """One batch: free phase, nudged phase and the updates of the parameters, in place.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit, or no parameter requires grad, or only a part
                of a connection does; no parameter was changed.
            Diverged: states or parameters would not be finite; no parameter was changed. On a GPU a Trainer sees that
                later.
            RuntimeError: within ``torch.inference_mode()``.
        """
        if not self.has_rates:
            raise ValueError(f"{type(self).__name__} moves no parameters without lr=: call backward() and an optimizer")
        circuit = self.circuit_to_train()
        rates = self.rates_to_train(circuit)
        x = self.net.check_input(circuit, x)
        y = self.net.check_nudge_target(circuit, x, y)
        result = self.moved_by(circuit, x, y, self.drawn_beta(), rates)
        self.note_step()
        return result

    def takes_many(self, x: Tensor, normalise: Normalisation | None = None) -> bool:
        """Whether :meth:`learn` takes batches of ``x`` in one call of the kernels."""
        circuit = self.net.circuit()
        example = example_of(*checked_inputs(self.net, circuit, x, normalise))
        return kernels_of_many(self, circuit, example) is not None

    def learn(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        *,
        normalise: Normalisation | None = None,
        rates: Tensor | None = None,
        signs: Tensor | None = None,
    ) -> Learned:
        """Learn from batches of a data set, one after the other, as :meth:`step` would from each: bit for bit the same.

        The kernels of a CPU take all batches of a chain of layers in one call: samples are gathered inside, and weights
        stay packed from batch to batch. Everything else takes a step for each batch.

        Args:
            x: all samples, ``(S, *input_shape)``, in the parameters' dtype, or bytes (uint8).
            y: of each sample its class ``(S,)`` int64, or a float target ``(S, classes)``.
            order: ``(N, B)`` int64, the numbers of the samples of each of N batches.
            normalise: what bytes stand for, see :class:`ceprop_cuda.data.Normalisation`; None: x / 255.
            rates: ``(N, connections)``, the learning rates of each batch, in place of ``lr``.
            signs: ``(N,)``, 1 or -1, the sign that beta takes in each batch; None: as ``nudging`` says.

        Raises:
            ValueError, TypeError: an argument does not fit; no parameter was changed.
            Diverged: the numbers of a batch, which it names, are not finite; the network is as the batch before left
                it.
            KeyboardInterrupt: after the batch in work, from which the network has learned.
        """
        orders = order[None] if isinstance(order, Tensor) else order
        [found] = learn_together([self], x, y, orders, normalise=normalise, rates=rates, signs=signs)
        if isinstance(found, NotStoredOf):
            raise found
        return found


@torch.no_grad()
def learn_together(
    rules: Sequence[MovingRule],
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    *,
    normalise: Normalisation | None = None,
    rates: Tensor | None = None,
    signs: Tensor | None = None,
) -> list[Learned | NotStoredOf]:
    """As :meth:`MovingRule.learn`, with several rules of one kind on networks of one shape, but that errors of a batch
    are not raised: they are returned in the place of what the network has found out.

    ``orders`` ``(R, N, B)``, ``rates`` ``(R, N, connections)``, ``signs`` ``(R, N)``."""
    first = rules[0]
    if not first.has_rates:
        raise ValueError(f"{type(first).__name__} moves no parameters without lr=: give it rates to learn by")
    circuits = [rule.circuit_to_train() for rule in rules]
    own = [rule.rates_to_train(circuit) for rule, circuit in zip(rules, circuits, strict=True)]
    samples = Samples.of(first.net, circuits[0], x, y, normalise)
    orders = checked_orders(orders, len(samples.x), len(rules))
    count = orders.shape[1]
    lr = _rates_by_batch(own, count, rates)
    betas = _betas(rules, count, signs)
    kernels = kernels_of_many(first, circuits[0], example_of(samples.x, samples.values))
    if kernels is None:
        each = zip(rules, circuits, own, orders, betas, lr, strict=True)
        return [_one_by_one(rule, circuit, samples, *rest) for rule, circuit, *rest in each]
    ran = call_kernels(kernels, rules, circuits, own, samples, orders, betas, lr)
    found: list[Learned | NotStoredOf] = []
    for r, (rule, learned, states) in enumerate(zip(rules, ran.learned.tolist(), ran.states, strict=True)):
        rule.note_step()
        if learned < count:
            of_batch = own[r]._replace(lr=lr[r, learned].tolist())
            batch = samples.batch(orders[r, learned])
            found.append(_refusal(rule, circuits[r], *batch, betas[r, learned].item(), of_batch, learned))
        else:
            free, nudged, minus = (*states, [])[:3]
            found.append(Learned(ran.loss[r], ran.wrong[r], ran.steps[r], free, nudged, minus))
    return found


def kernels_of_many(rule: MovingRule, circuit: Circuit, x: Tensor) -> Kernels | None:
    """Those that learn by ``rule`` from many batches of samples like ``x`` in one call; None if it runs by none."""
    engine = engine_for(rule.backend, rule.kernels(), circuit, x, rule.gate)
    if isinstance(engine, Kernels) and ops.many_obstacle(circuit, x, rule.gate, engine.engine) is None:
        return engine
    return None


def call_kernels(
    kernels: Kernels,
    rules: Sequence[MovingRule],
    circuits: Sequence[Circuit],
    own: Sequence[Rates],
    samples: Samples,
    orders: Tensor,
    betas: Tensor,
    lr: Tensor,
) -> ops.LearnedMany:
    """One call for all networks and batches: ``orders`` ``(R, N, B)``, ``betas`` ``(R, N)``, ``lr`` ``(R, N,
    connections)``."""
    with exact(samples.x):
        return ops.learn(
            circuits,
            samples.x,
            samples.y,
            orders,
            betas=betas,
            rates=lr,
            values=samples.values,
            weight_decay=[of.weight_decay for of in own],
            momentum=[of.momentum for of in own],
            momenta=_momenta(rules, circuits, own),
            **rules[0].many_settings(),
            **kernels._asdict(),
        )


def one(numbers: float | Sequence[float]) -> Tensor:
    """What :func:`call_kernels` takes of one network and one batch."""
    return torch.tensor([[numbers]], dtype=torch.float64, device="cpu")


def _one_by_one(
    rule: MovingRule, circuit: Circuit, samples: Samples, own: Rates, orders: Tensor, betas: Tensor, lr: Tensor
) -> Learned | NotStoredOf:
    """A step for each batch."""
    results = []
    for number, (order, beta, of_batch) in enumerate(zip(orders, betas.tolist(), lr.tolist(), strict=True)):
        x, y = samples.batch(order)
        try:
            result = rule.moved_by(circuit, x, y, beta, own._replace(lr=of_batch))
            if result.steps.is_cuda and result.steps.min() < 0:  # what a step alone does not wait for
                raise NotStored(what_is_not_finite(rule.net.layers, circuit, x, result))
            results.append(result)
        except NotStored as reason:
            return NotStoredOf(number, reason)
    wrong = [(of.output.argmax(1) != of.target.argmax(1)).sum() for of in results]
    loss, steps = [of.loss.double() for of in results], [of.steps for of in results]
    last = results[-1]
    return Learned(
        torch.stack(loss),
        torch.stack(wrong),
        torch.stack(steps),
        last.free_states,
        last.nudged_states,
        last.nudged_minus_states,
    )


def _refusal(
    rule: MovingRule, circuit: Circuit, x: Tensor, y: Tensor, beta: float, rates: Rates, number: int
) -> NotStoredOf:
    """Why the kernels have kept nothing of a batch: what a step says of it."""
    try:
        rule.moved_by(circuit, x, y, beta, rates)
    except NotStored as reason:
        return NotStoredOf(number, reason)
    raise AssertionError("a batch that many batches' kernels refuse is none that a step refuses")


def _rates_by_batch(own: Sequence[Rates], count: int, given: Tensor | None) -> Tensor:
    """``(R, N, connections)`` float64; a connection that does not require grad stays at 0."""
    lr = torch.tensor([of.lr for of in own], dtype=torch.float64, device="cpu")[:, None].expand(-1, count, -1)
    if given is None:
        return lr
    wanted = tuple(lr.shape if len(own) > 1 else lr.shape[1:])
    given = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    if given.numel() != lr.numel() or given.shape[-len(wanted) :] != wanted:
        raise ValueError(f"rates must be {wanted}, a rate of each batch and connection, got {tuple(given.shape)}")
    if not (given.isfinite() & (given >= 0)).all():
        raise ValueError("rates must be finite numbers >= 0")
    return given.reshape(lr.shape) * (lr > 0)


def _betas(rules: Sequence[MovingRule], count: int, signs: Tensor | None) -> Tensor:
    """``(R, N)`` float64."""
    if signs is None:
        return torch.tensor(
            [[rule.drawn_beta() for _ in range(count)] for rule in rules], dtype=torch.float64, device="cpu"
        )
    signs = torch.as_tensor(signs, dtype=torch.float64, device="cpu")
    if signs.numel() != len(rules) * count or not (signs.abs() == 1).all():
        raise ValueError(f"signs must be 1 or -1 for each of {count} batches, got {shown(signs)}")
    return signs.reshape(len(rules), count) * torch.tensor(
        [[rule.beta] for rule in rules], dtype=torch.float64, device="cpu"
    )


def _momenta(rules: Sequence[MovingRule], circuits: Sequence[Circuit], own: Sequence[Rates]) -> list[Tensor]:
    """What the kernels keep up to date: of each network those of weights, biases and feedback weights."""
    if not any(of.momentum for of in own):
        return []
    momenta = []
    for rule, circuit in zip(rules, circuits, strict=True):
        none = circuit.weights[0].new_empty(0)
        for p in (*circuit.weights, *circuit.biases, *(circuit.free_feedback or ())):
            momenta.append(none if p is None else rule.momentum_of(p))
    return momenta
