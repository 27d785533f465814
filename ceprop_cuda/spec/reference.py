"""What every kernel must compute: equilibrium propagation in plain PyTorch.

This file, ``dynamics.py``, the units and their steps, and ``gates.py`` are the specification. They are written to be
read beside the papers, run on any device and in any floating dtype, are differentiable, and know nothing of the
kernels.

References: arXiv 1905.13633 (EP in discrete time), 2005.04168 and 2005.04169 (continual EP, C-VF),
2006.03824 (symmetric nudging, cross-entropy, softmax readout).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import connections, losses
from .dynamics import Circuit, Nudge, emitted, from_input, logits, output_error, resting_states, step
from .gates import Slopes, check_gate, slopes_at, step_with_slopes

# A phase with a tolerance asks only after every so many steps whether it may stop: each time costs a pass over all
# states and, in the kernels, a barrier.
STEPS_PER_CHECK = 4


# ---------------------------------------------------------------------------------------------------------------
# Phases


class Relaxed(NamedTuple):
    states: list[Tensor]
    steps: Tensor  # (1,) int64, on the states' device: how many steps were made


def settled(steps: int, before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float | None) -> bool:
    """Whether a phase may stop after ``steps`` steps, the last of which led from ``before`` to ``after``: if it is time
    to ask, and no unit of any sample moved by more than ``tolerance``. None never stops a phase, and NaN states keep
    it going."""
    if tolerance is None or steps % STEPS_PER_CHECK != 0:
        return False
    return all((b - a).abs().max().item() <= tolerance for a, b in zip(before, after, strict=True))


def relax(
    circuit: Circuit,
    x: Tensor,
    steps: int,
    states: Sequence[Tensor] | None = None,
    nudge: Nudge | None = None,
    tolerance: float | None = None,
) -> Relaxed:
    """``steps`` steps from ``states`` (default: rest), or fewer if they have :func:`settled`: a free phase, or with
    ``nudge`` a nudged one."""
    states = resting_states(circuit, x) if states is None else [s.clone() for s in states]
    done = 0
    for done in range(1, steps + 1):
        before, states = states, step(circuit, x, states, nudge)
        if settled(done, before, states, tolerance):
            break
    return Relaxed(states, count(x, done))


def count(x: Tensor, steps: int) -> Tensor:
    """``steps`` as a tensor ``(1,)`` beside ``x``."""
    return torch.full((1,), steps, dtype=torch.int64, device=x.device)  # which waits for no device


def loss(answer: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over the batch of the loss ``kind``, see ``losses.py``; both ``(B, classes)``, result 0-d."""
    return losses.BY_NAME[kind].mean(answer, target)


# ---------------------------------------------------------------------------------------------------------------
# Learning


class PerParameter(NamedTuple):
    """A tensor for each parameter: its contrast, the direction in which it should move, or its gradient.

    Without the readout's, unless a function says that it adds them.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]  # None where there is none
    feedback: list[Tensor]  # of the inner connections; empty when tied

    def parameters(self) -> list[Tensor]:
        """All that exist, in the order of :meth:`Circuit.parameters`."""
        return [dp for dp in (*self.weights, *self.biases, *self.feedback) if dp is not None]


def contrast(
    circuit: Circuit,
    x: Tensor,
    earlier: Sequence[Tensor],
    later: Sequence[Tensor],
    fixed: Sequence[Tensor],
    beta: float,
    shared_update: bool = False,
    slopes: Slopes | None = None,
) -> PerParameter:
    """The local contrast between two states, over ``beta`` and the batch size.

    Connection e joins u, the layer below or the input, to v, the layer above; r are the emitted states.
    Tied:  dW[e] = (r'[v]^T r'[u] - r[v]^T r[u]) / (beta B).
    Vector field:  dW[e] = (s'[v] - s[v])^T r*[u] / (beta B),  dV[e] = r*[v]^T (s'[u] - s[u]) / (beta B), where
    r* are the emitted states of ``fixed``: the free state's for EP, the earlier one's for continual EP. ``slopes``, of
    a gate, multiply every s' - s.
    Shared (Kolen-Pollack, as 2006.03824 trains vector fields): W[e] and V[e] both get the mean of the tied contrasts by
    either, which are the same where there is no max pooling.
    A convolution has the derivative of r[v] . F_e(r[u]) by its weight in place of an outer product.
    The readout is no part of this: see :func:`readout_contrast`.
    """
    scale, edges, inner = 1 / (beta * len(x)), circuit.connections, circuit.structure.inner

    def of_weight(v: Tensor, u: Tensor, e: int) -> Tensor:
        return connections.contrast(v, u, circuit.weights[e], circuit.biases[e], edges[e].convolution)

    def of_feedback(v: Tensor, u: Tensor, e: int, picking: Tensor | None = None) -> Tensor:
        return connections.contrast(v, u, circuit.feedback(e), None, edges[e].convolution, picking)

    d_feedback = []
    if circuit.free_feedback is None or shared_update:
        r, r_later = emitted(circuit, x, earlier), emitted(circuit, x, later)
        moved = [b - a for a, b in zip(r[1:], r_later[1:], strict=True)]
        above_moved = [moved[c.above] for c in edges]

        def tied(product: Callable[[Tensor, Tensor, int], Tensor], e: int) -> Tensor:
            after, before = (product(sent[edges[e].above + 1], sent[edges[e].below + 1], e) for sent in (r_later, r))
            return scale * (after - before)

        d_weights = [tied(of_weight, e) for e in range(len(edges))]
        if shared_update:
            for e in inner:
                d_weights[e] = (d_weights[e] + tied(of_feedback, e)) / 2
            d_feedback = [d_weights[e].clone() for e in inner]
    else:
        r = emitted(circuit, x, fixed)
        moved = [b - a for a, b in zip(earlier, later, strict=True)]

        def gated_below(s: Tensor, e: int) -> Tensor:
            return s if slopes is None else slopes.below[e] * s

        above_moved = [
            moved[c.above] if slopes is None else slopes.above[e] * moved[c.above] for e, c in enumerate(edges)
        ]
        d_weights = [scale * of_weight(above_moved[e], r[c.below + 1], e) for e, c in enumerate(edges)]
        for e in inner:
            below, above, made = edges[e]
            if made is not None and made.pool == "max":  # each state decides its own maxima
                after, before = (
                    of_feedback(r[above + 1], gated_below(s[below], e), e, picking=s[below]) for s in (later, earlier)
                )
                d_feedback.append(scale * (after - before))
            else:
                d_feedback.append(scale * of_feedback(r[above + 1], gated_below(moved[below], e), e))
    d_biases = [
        None if b is None else scale * connections.bias_contrast(d)
        for b, d in zip(circuit.biases, above_moved, strict=False)
    ]
    return PerParameter(d_weights, d_biases, d_feedback)


def readout_contrast(circuit: Circuit, states: Sequence[Tensor], nudge: Nudge) -> tuple[Tensor, Tensor | None]:
    """Minus the loss gradient of R and c at ``states``: e^T s / B and the mean of e, e = y - softmax(R s + c)."""
    error = output_error(circuit, states, nudge)
    return error.T @ states[circuit.output].flatten(1) / len(error), None if circuit.biases[-1] is None else error.mean(
        0
    )


def combine(changes: Sequence[PerParameter], scale: float = 1.0) -> PerParameter:
    """``scale`` times the sum of ``changes``, parameter by parameter."""

    def add(parts: tuple) -> Any:
        return None if parts[0] is None else scale * sum(parts)

    lists = zip(*changes, strict=True)
    weights, biases, feedback = ([add(parts) for parts in zip(*group, strict=True)] for group in lists)
    return PerParameter(weights, biases, feedback)


def with_readout(
    circuit: Circuit, change: PerParameter, ends: Sequence[Sequence[Tensor]], nudge: Nudge
) -> PerParameter:
    """``change`` and, if there is a readout, the mean of its contrasts at the ``ends`` of the nudged phases."""
    if not circuit.structure.has_readout:
        return change
    weights, biases = zip(*(readout_contrast(circuit, end, nudge) for end in ends), strict=True)
    mean = combine([PerParameter([w], [b], []) for w, b in zip(weights, biases, strict=True)], 1 / len(ends))
    return PerParameter(change.weights + mean.weights, change.biases + mean.biases, change.feedback)


class EPResult(NamedTuple):
    gradients: PerParameter  # EP's estimate of the loss gradients: minus the contrast
    output: Tensor  # (B, classes): the logits of the free state
    free_states: list[Tensor]
    nudged_states: list[list[Tensor]]  # the end of the phase with +beta; when symmetric also of that with -beta
    steps: Tensor  # (phases,) int64, on the states' device: the steps made in each phase, in the order of the phases


def ep_step(
    circuit: Circuit,
    x: Tensor,
    nudge: Nudge,
    *,
    free_steps: int,
    nudged_steps: int,
    tolerance: float | None = None,
    symmetric: bool = False,
    accumulate: bool = False,
    shared_update: bool = False,
    gate: str | None = None,
) -> EPResult:
    """EP's estimate of the loss gradient: a free phase, one nudged phase or two, minus the contrast.

    One-sided (2005.04168): from the free state to the end of the nudged phase, over beta. Symmetric (2006.03824, third
    phase): from the end of the phase with -beta to that with +beta, over 2 beta. ``accumulate`` sums the contrasts of
    consecutive steps of the nudged phases instead, which makes a difference for vector fields only. Every phase ends
    after its steps, or before if it has :func:`settled`. ``gate`` (see ``gates.py``): where contrasts are summed the
    drives are those of each step, else those at the free state.
    """
    check_gate(circuit, gate, shared_update)
    free, steps_made = relax(circuit, x, free_steps, tolerance=tolerance)
    ends, path, made = [], [], [steps_made]
    for signed in (nudge, replace(nudge, beta=-nudge.beta)) if symmetric else (nudge,):
        states = free
        for done in range(1, nudged_steps + 1):
            before, (states, slopes) = (
                states,
                step_with_slopes(circuit, x, states, signed, gate if accumulate else None),
            )
            if accumulate:
                path.append(contrast(circuit, x, before, states, before, signed.beta, shared_update, slopes))
            if settled(done, before, states, tolerance):
                break
        ends.append(states)
        made.append(count(x, done))
    if accumulate:
        change = combine(path, 1 / len(ends))
    else:
        earlier, over = (ends[1], 2 * nudge.beta) if symmetric else (free, nudge.beta)
        slopes = slopes_at(circuit, x, free, gate)
        change = contrast(circuit, x, earlier, ends[0], free, over, shared_update, slopes)
    change = with_readout(circuit, change, ends, nudge)
    for dp in change.parameters():
        dp.neg_()
    return EPResult(change, logits(circuit, free), free, ends, torch.cat(made))


class CEPResult(NamedTuple):
    circuit: Circuit  # with the parameters after the step
    output: Tensor  # (B, classes): the logits of the free state, by the parameters before the step
    free_states: list[Tensor]
    nudged_states: list[list[Tensor]]  # as in EPResult
    steps: Tensor  # as in EPResult; when symmetric: free, +beta, un-nudged, -beta


def moved(circuit: Circuit, change: PerParameter, lr: Sequence[float], weight_decay: float, first: int = 0) -> Circuit:
    """p <- p + lr_e (dp - weight_decay p); ``change`` speaks of connection ``first`` and those after it."""

    def move(p: Tensor, dp: Tensor, connection: int) -> Tensor:
        return p + lr[connection] * (dp - weight_decay * p)

    weights, biases, feedback = list(circuit.weights), list(circuit.biases), list(circuit.free_feedback or [])
    for c, (dw, db) in enumerate(zip(change.weights, change.biases, strict=True), first):
        weights[c] = move(weights[c], dw, c)
        b = biases[c]
        if b is not None and db is not None:
            biases[c] = move(b, db, c)
    for index, (c, dv) in enumerate(zip(circuit.structure.inner, change.feedback, strict=False)):
        feedback[index] = move(feedback[index], dv, c)
    return replace(
        circuit, weights=weights, biases=biases, free_feedback=None if circuit.free_feedback is None else feedback
    )


def cep_step(
    circuit: Circuit,
    x: Tensor,
    nudge: Nudge,
    *,
    free_steps: int,
    nudged_steps: int,
    lr: Sequence[float],
    tolerance: float | None = None,
    symmetric: bool = False,
    shared_update: bool = False,
    weight_decay: float = 0.0,
    gate: str | None = None,
) -> CEPResult:
    """Continual EP (2005.04168): at every nudged step t the states step with the weights of step t, then
    W <- W + lr_e (dW(s^t -> s^{t+1}) - weight_decay W), ``lr`` per connection.

    Symmetric: a phase with +beta, ``nudged_steps`` un-nudged steps back towards the free state, a phase with -beta;
    every contrast is taken over 2 (+-beta), so that their sum is EP's symmetric contrast as lr -> 0.
    A readout is outside the dynamics: it moves once, at the end, by EP's contrast for it. Every phase ends after its
    steps, or before if it has :func:`settled`. ``gate``: see ``gates.py``.
    """
    check_gate(circuit, gate, shared_update)
    free, steps_made = relax(circuit, x, free_steps, tolerance=tolerance)
    output, states, made = logits(circuit, free), free, [steps_made]
    ends: list[list[Tensor]] = []
    for signed in (nudge, replace(nudge, beta=-nudge.beta)) if symmetric else (nudge,):
        if ends:
            states, steps_made = relax(circuit, x, nudged_steps, states, tolerance=tolerance)
            made.append(steps_made)
        for done in range(1, nudged_steps + 1):
            before, (states, slopes) = states, step_with_slopes(circuit, x, states, signed, gate)
            over = (2 if symmetric else 1) * signed.beta
            change = contrast(circuit, x, before, states, before, over, shared_update, slopes)
            circuit = moved(circuit, change, lr, weight_decay)
            if settled(done, before, states, tolerance):
                break
        ends.append(states)
        made.append(count(x, done))
    of_readout = with_readout(circuit, PerParameter([], [], []), ends, nudge)
    circuit = moved(circuit, of_readout, lr, weight_decay, first=len(circuit.connections))
    return CEPResult(circuit, output, free, ends, torch.cat(made))


class BPTTResult(NamedTuple):
    gradients: PerParameter
    output: Tensor  # (B, classes): the logits of the free state
    free_states: list[Tensor]


def bptt(
    circuit: Circuit, x: Tensor, target: Tensor, loss_kind: str, *, unrolled_steps: int, states: Sequence[Tensor]
) -> BPTTResult:
    """The exact gradient of the loss ``unrolled_steps`` steps after ``states``, back to them and no further."""
    with torch.enable_grad():
        circuit = circuit.leaves()
        known = from_input(circuit, emitted(circuit, x, states))  # once, and once back, for all steps
        for _ in range(unrolled_steps):
            states = step(circuit, x, states, known=known)
        output = logits(circuit, states)
        found = iter(torch.autograd.grad(loss(output, target, loss_kind), circuit.parameters(), materialize_grads=True))
    gradients = PerParameter(
        [next(found) for _ in circuit.weights],
        [None if b is None else next(found) for b in circuit.biases],
        [next(found) for _ in circuit.free_feedback or []],
    )
    return BPTTResult(gradients, output.detach(), [s.detach() for s in states])
