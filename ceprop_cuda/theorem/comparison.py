"""The updates of EP and continual EP beside the gradients of BPTT, step by step (arXiv 1905.13633, 2005.04168).

Let the free phase end at s_T, and let theta_{T-t} be the copy of the parameters with which it stepped to s_{T-t}. If
it has settled at least K steps before its end, then for t = 0 .. K-1, as beta and the learning rate go to 0,

    neurons      (s_{t+1} - s_t) / beta                ->  - dL/ds_{T-t}
    parameters   contrast of s_t and s_{t+1} / beta    ->  - dL/dtheta_{T-t}

where s_t are the states of the nudged phase, s_0 = s_T, and the contrast is ``reference.contrast``, for W[l]
(s_{t+1}[l]^T s_{t+1}[l-1] - s_t[l]^T s_t[l-1]) / B: what the nudge has reached after t steps forward is what the
gradient has reached after t steps back. Energy dynamics, with rho(s) in place of s there, move neurons by dt times as
much, which the comparison divides by. Exact for dynamics that are the gradient of a scalar function; how close others
come, and how much of it a finite beta, T and K leave, is what :func:`compare` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..arguments.checks import whole_number
from ..backends import exact
from ..spec import reference
from ..spec.dynamics import Circuit, Nudge
from ..spec.gates import Slopes, slopes_at, step_with_slopes
from ..training import NudgedRule, Rule


@dataclass(frozen=True)
class Agreement:
    """How well the updates of a layer's neurons, or of one parameter, follow the gradient; shares lie in [0, 1]."""

    quantity: str  # "s[l]" of layer l, by name; "W[e]", "b[e]" or "V[e]" of connection e, by number
    rmse: float  # relative RMSE (see Match), mean over the entries that have one
    rmse_median: float
    sign_disagreement: float  # share of all steps and entries with a gradient, in which the update has another sign
    sign_agreement: float  # share of the entries whose updates add up to something of the sign of the summed gradient
    angle: float  # degrees between the summed updates and minus the summed gradients


@dataclass(frozen=True)
class Match:
    """The updates of a layer's neurons, or of one parameter, beside minus the gradients.

    Entries are the neurons, ``(n_l,)`` or ``(C, H, W)``, of which the papers take the mean over the batch, or the
    parameter's numbers. The relative RMSE of an entry is the root of the mean over t of (update - descent)^2, over the
    larger of the two's root mean squares; NaN where both vanish throughout.
    """

    agreement: Agreement
    rmse: Tensor  # of each entry
    summed_updates: Tensor  # over t = 0 .. K-1, of each entry
    summed_descents: Tensor  # minus the gradients, likewise
    sampled: Tensor  # (m,) int64, flat indices of the entries whose course is recorded
    updates: Tensor  # (K, m), at nudged step t
    descents: Tensor  # (K, m), minus the gradient t steps back from the end of the free phase


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found."""

    neurons: list[Match]  # of each layer, input side first
    parameters: list[Match]  # weights, biases and free feedback, each input side first; a readout has none
    loss: float  # of the free phase, mean over the batch
    moved: float  # largest change of a unit within a step among the last K of the free phase; 0 if it has settled

    @property
    def matches(self) -> list[Match]:
        return [*self.neurons, *self.parameters]

    @property
    def agreements(self) -> list[Agreement]:
        """Of every layer and parameter."""
        return [match.agreement for match in self.matches]

    @property
    def angle(self) -> float:
        """Degrees between the updates of all parameters, summed over the steps, and minus the gradient of BPTT."""
        sums = [(match.summed_updates, match.summed_descents) for match in self.parameters]
        updates, descents = (torch.cat([part.flatten() for part in side]) for side in zip(*sums, strict=True))
        return _degrees(updates, descents)


@torch.no_grad()
def compare(rule: Rule, x: Tensor, y: Tensor, samples: int = 100) -> Comparison:
    """Compare the nudged phase of ``rule`` with BPTT through as many last steps of its free phase; changes nothing.

    The updates are those of the rule: they add up to minus what :meth:`EP.backward` adds to the gradients, and, times
    the learning rates, to what :meth:`CEP.step` adds to the parameters, weight decay and readout aside. Phases make
    all their steps, whatever the rule's ``tolerance``. One pass over the K steps, in which BPTT goes a step back while
    the nudged phase goes one forward: the gradients of no more than one step are held at a time.

    Args:
        rule: EP with ``nudging="symmetric"`` has the mean of the updates with +beta and with -beta, continual EP must
            not have it; "random_sign" is taken with the sign that ``beta`` has. In float32 the differences of states
            lose digits, float64 shows the theorem.
        x, y: as for a training step.
        samples: number m of entries of each layer and parameter whose course is recorded, drawn at random; all of
            them, in order, where there are no more.

    Raises:
        ValueError, TypeError: the rule cannot be compared, or a shape, dtype or device does not fit.
    """
    nudged = _fit_to_compare(rule)
    samples = whole_number("samples", samples, 1)
    circuit = rule.net.circuit().leaves()
    x = rule.net.check_input(circuit, x)
    nudge = nudged.nudge(rule.net.check_target(circuit, x, y))
    with exact(x):
        return _compared(nudged, circuit, x, nudge, samples)


def _compared(rule: NudgedRule, circuit: Circuit, x: Tensor, nudge: Nudge, samples: int) -> Comparison:
    work = rule.work()
    path = _end_of_free_phase(rule, circuit, x)
    moved = max(_largest_change(before, after) for before, after in pairwise(path))
    free = path.pop()
    loss = reference.loss(reference.logits(circuit, free), nudge.target, nudge.loss).item()

    # Energy dynamics move by dt times their forces, the nudge among them.
    pace = circuit.dynamics.dt if circuit.dynamics.kind == "energy" else 1.0
    draw = torch.Generator("cpu").manual_seed(0)
    neurons = [_Tally(f"s[{name}]", s[0], samples, draw) for name, s in zip(rule.net.layers, free, strict=True)]
    parameters = [_Tally(name, p, samples, draw) for name, p in _in_the_dynamics(circuit).items()]
    nudges = [nudge, replace(nudge, beta=-nudge.beta)] if work.symmetric else [nudge]
    ends, moving, pull = [free] * len(nudges), circuit, _loss_gradient(circuit, free, nudge)
    is_fixed = not (work.accumulate or work.continual)
    of_free = slopes_at(circuit, x, free, rule.gate)
    for _ in range(rule.nudged_steps):
        befores = ends
        steps = [step_with_slopes(moving, x, s, n, rule.gate) for s, n in zip(befores, nudges, strict=True)]
        ends = [after for after, _ in steps]
        made = list(zip(befores, ends, nudges, strict=True))
        slopes = [of_free if is_fixed else of_step for _, of_step in steps]
        change = _mean_contrast(rule, moving, x, free if is_fixed else None, made, slopes)
        moving = rule.moved(moving, change)
        for layer, (tally, gradient) in enumerate(zip(neurons, pull, strict=True)):
            updates = torch.stack([(after[layer] - before[layer]) / (pace * n.beta) for before, after, n in made])
            tally.add(updates.mean((0, 1)), -gradient.sum(0))
        pull, gradients = _step_back(circuit, x, path.pop(), pull)
        for tally, dp, gradient in zip(parameters, change.parameters(), gradients, strict=True):
            tally.add(dp, -gradient)
    return Comparison([t.match() for t in neurons], [t.match() for t in parameters], loss, moved)


def _fit_to_compare(rule: Rule) -> NudgedRule:
    """``rule``, if it can be compared."""
    if not isinstance(rule, NudgedRule):
        raise TypeError(f"rule must be an EP or CEP, which has a nudged phase, got {type(rule).__name__}")
    work = rule.work()
    if work.symmetric and work.continual:
        raise ValueError(
            "continual EP's second phase begins with other weights: rule must not have nudging='symmetric'"
        )
    if rule.nudged_steps > rule.free_steps:
        raise ValueError(
            f"the theorem needs as many free steps as nudged ones, got free_steps={rule.free_steps} and "
            f"nudged_steps={rule.nudged_steps}"
        )
    rule.refuse_wrong_settings()
    return rule


def _end_of_free_phase(rule: NudgedRule, circuit: Circuit, x: Tensor) -> list[list[Tensor]]:
    """The states before and after each of as many last steps of the free phase as there are nudged ones."""
    steps = rule.nudged_steps
    path = [rule.relaxed(circuit, x, rule.free_steps - steps).states]
    for _ in range(steps):
        path.append(reference.step(circuit, x, path[-1]))
    return path


def _mean_contrast(
    rule: NudgedRule,
    circuit: Circuit,
    x: Tensor,
    fixed: Sequence[Tensor] | None,
    made: Sequence[tuple[Sequence[Tensor], Sequence[Tensor], Nudge]],
    slopes: Sequence[Slopes | None],
) -> reference.PerParameter:
    """Of the steps ``made``, one in each nudged phase: states before and after, and the nudge; with the ``slopes`` of
    the rule's gate in each. ``fixed``: as in ``reference.contrast``; None: the states before the step."""
    contrasts = [
        reference.contrast(circuit, x, before, after, fixed or before, n.beta, rule.shared_update, of_step)
        for (before, after, n), of_step in zip(made, slopes, strict=True)
    ]
    return contrasts[0] if len(made) == 1 else reference.combine(contrasts, 1 / len(made))


def _in_the_dynamics(circuit: Circuit) -> dict[str, Tensor]:
    """The parameters by name, in the order of :meth:`Circuit.parameters`, but those of a readout."""
    lists: dict[str, Sequence[Tensor | None]] = {
        "W": circuit.weights[: len(circuit.connections)],
        "b": circuit.biases[: len(circuit.connections)],
    }
    named = [(f"{letter}[{e}]", p) for letter, group in lists.items() for e, p in enumerate(group)]
    named += [(f"V[{e}]", v) for e, v in zip(circuit.structure.inner, circuit.free_feedback or [], strict=False)]
    return {name: p for name, p in named if p is not None}


def _largest_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    return max((b - a).abs().max().item() for a, b in zip(before, after, strict=True))


def _loss_gradient(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> list[Tensor]:
    """The gradient of the loss, mean over the batch, with respect to ``states``."""
    with torch.enable_grad():
        states = [s.detach().requires_grad_() for s in states]
        loss = reference.loss(reference.logits(circuit, states), nudge.target, nudge.loss)
        return list(torch.autograd.grad(loss, states, materialize_grads=True))


def _step_back(
    circuit: Circuit, x: Tensor, before: Sequence[Tensor], pull: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """From the gradient ``pull`` with respect to the states after a free step, that with respect to the states
    ``before`` it, and that with respect to the copy of each parameter that this step used."""
    with torch.enable_grad():
        states = [s.detach().requires_grad_() for s in before]
        inputs = [*states, *_in_the_dynamics(circuit).values()]
        after = reference.step(circuit, x, states)
        pulled = torch.stack([(s * p).sum() for s, p in zip(after, pull, strict=True)]).sum()
        found = torch.autograd.grad(pulled, inputs, materialize_grads=True)
    return list(found[: len(states)]), list(found[len(states) :])


class _Tally:
    """Sums over the steps, entry by entry, and the course of some entries."""

    def __init__(self, quantity: str, like: Tensor, samples: int, draw: torch.Generator) -> None:
        self._quantity = quantity
        # Sums of u, d, u^2, d^2 and (u - d)^2, u the updates and d minus the gradients.
        self._u, self._d, self._uu, self._dd, self._rest = (torch.zeros_like(like) for _ in range(5))
        self._opposed = self._signed = 0
        size = like.numel()
        every = size <= samples
        sampled = torch.arange(size, device="cpu") if every else torch.randperm(size, generator=draw, device="cpu")
        self._sampled = sampled[:samples].sort()[0].to(like.device)
        self._courses: list[tuple[Tensor, Tensor]] = []

    def add(self, update: Tensor, descent: Tensor) -> None:
        """Count the next step: ``update`` and minus the gradient, shaped like the entries."""
        self._u += update
        self._d += descent
        self._uu.addcmul_(update, update)
        self._dd.addcmul_(descent, descent)
        rest = update - descent
        self._rest.addcmul_(rest, rest)
        agreeing, signed = _signs(update, descent)
        self._opposed += signed - agreeing
        self._signed += signed
        self._courses.append((update.flatten()[self._sampled], descent.flatten()[self._sampled]))

    def match(self) -> Match:
        rmse = (self._rest / torch.maximum(self._uu, self._dd)).sqrt()  # 0 / 0 is NaN
        agreeing, signed = _signs(self._u, self._d)
        agreement = Agreement(
            self._quantity,
            rmse=rmse.nanmean().item(),
            rmse_median=rmse.nanmedian().item(),
            sign_disagreement=_share(self._opposed, self._signed),
            sign_agreement=_share(agreeing, signed),
            angle=_degrees(self._u, self._d),
        )
        updates, descents = (torch.stack(course) for course in zip(*self._courses, strict=True))
        return Match(agreement, rmse, self._u, self._d, self._sampled, updates, descents)


def _signs(updates: Tensor, descents: Tensor) -> tuple[int, int]:
    """In how many entries with a gradient the update has its sign, and how many of them there are."""
    return int((updates * descents > 0).sum()), int(descents.count_nonzero())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _degrees(a: Tensor, b: Tensor) -> float:
    """Between two tensors as vectors; NaN if one vanishes."""
    cosine = (a.flatten() @ b.flatten() / (a.norm() * b.norm())).item()
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))) if math.isfinite(cosine) else math.nan
