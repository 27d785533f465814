"""The fused kernels' algebra in plain PyTorch: shows how much of their speed comes from counting operations alone.

The drive by the input is computed once. Continual EP moves connection 0 at the end, and until then its drive through x
x^T. Tied inner connections move at the end, too, if correcting their drives by products with B x B matrices takes fewer
operations, and else in place, by one product a step; csrc/cpu/dense/low_rank_update.h derives that. The sigmoid's slope
and offset ride on the matrix products, and all states are written in place.

Takes what the benchmark needs: networks of two layers or more, prototypical dynamics, sigmoid units with biases,
squared error, nudging at the state, tied feedback or for continual EP free feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..spec.dynamics import Circuit, Nudge
from ..spec.reference import CEPResult, EPResult, PerParameter, Relaxed, count
from .stepwise import refuse, steps_of


class Relaxation:
    """The states of a network, and its steps.

    The states before and after a step are the two halves of one buffer per layer, in turn.
    """

    def __init__(self, circuit: Circuit, x: Tensor) -> None:
        self.weights = circuit.weights
        self.feedback = [circuit.feedback(c) for c in circuit.structure.inner]
        self.buffers = [x.new_zeros(2 * len(x), w.shape[0]) for w in circuit.weights]
        self.after = [buffer[: len(x)] for buffer in self.buffers]
        self.before = [buffer[len(x) :] for buffer in self.buffers]
        self.is_after_first = True  # whether ``after`` is the first half of the buffers
        # rho(a) = sigmoid(4 (a - 1/2)): the offset is taken off here, the slope is a factor of every product.
        first, *others = (b - 0.5 for b in circuit.biases if b is not None)
        self.drives = [torch.addmm(first, x, circuit.weights[0].T), *others]

    def step(self, nudge: Nudge | None = None, corrections: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """From ``after`` to the new ``after``. Corrections: per layer two factors whose product joins its drive."""
        self.before, self.after = self.after, self.before
        self.is_after_first = not self.is_after_first
        for layer, out in enumerate(self.after):
            products = [(self.before[layer - 1], self.weights[layer].T)] if layer > 0 else []
            products += [(self.before[layer + 1], self.feedback[layer])] if layer + 1 < len(self.after) else []
            products += corrections[layer : layer + 1]
            drive, slope = self.drives[layer], 4.0
            for a, b in products:
                drive, slope = torch.addmm(drive, a, b, beta=slope, alpha=4, out=out), 1.0
            out.sigmoid_()
        if nudge is not None:
            self.after[-1].add_(nudge.target, alpha=nudge.beta).sub_(self.before[-1], alpha=nudge.beta)


class SameAlgebra:
    """It as an engine, for one nudged phase that ends after its steps."""

    stores_only_finite = False

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> str | None:
        dynamics = circuit.dynamics
        if (dynamics.kind, dynamics.activation, dynamics.output_activation) != ("prototypical", "sigmoid", "sigmoid"):
            return "same_algebra is written for prototypical dynamics of sigmoid units only"
        if not circuit.structure.is_chain or circuit.structure.convolutions or gate is not None:
            return "same_algebra is written for chains of dense layers without a gate"
        return None

    def relax(self, circuit: Circuit, x: Tensor, steps: int, **others: Any) -> Relaxed:
        refuse(others)
        return Relaxed(_relaxed(circuit, x, steps).after, count(x, steps))

    def ep_step(
        self, circuit: Circuit, x: Tensor, nudge: Nudge, *, free_steps: int, nudged_steps: int, **others: Any
    ) -> EPResult:
        refuse(others)
        if circuit.free_feedback is not None:
            raise ValueError("same_algebra's EP is written for tied feedback only")
        relaxation = _relaxed(circuit, x, free_steps)
        free = [s.clone() for s in relaxation.after]
        for _ in range(nudged_steps):
            relaxation.step(nudge)
        nudged, scale = relaxation.after, -1 / (nudge.beta * len(x))
        moved = [(after - s).mul_(scale) for s, after in zip(free, nudged, strict=True)]
        weights = [moved[0].T @ x]
        for above in range(1, len(free)):
            product = nudged[above].T @ nudged[above - 1]
            weights.append(product.addmm_(free[above].T, free[above - 1], beta=scale, alpha=-scale))
        gradients = PerParameter(weights, [d.sum(0) for d in moved], [])
        return EPResult(gradients, free[-1], free, [nudged], steps_of(x, free_steps, nudged_steps))

    def cep_step(
        self,
        circuit: Circuit,
        x: Tensor,
        nudge: Nudge,
        *,
        free_steps: int,
        nudged_steps: int,
        lr: Sequence[float],
        **others: Any,
    ) -> CEPResult:
        """The parameters of ``circuit`` move in place, as the kernels move them."""
        refuse(others)
        relaxation = _relaxed(circuit, x, free_steps)
        free = [s.clone() for s in relaxation.after]
        rates = [rate / (nudge.beta * len(x)) for rate in lr]
        gram = rates[0] * (x @ x.T + 1)  # 1: the bias
        run = _nudge_at_low_rank if low_rank_pays(circuit, len(x)) else _nudge_literally
        run(relaxation, circuit, nudge, nudged_steps, rates, gram)
        moved = [after - s for s, after in zip(free, relaxation.after, strict=True)]
        circuit.weights[0].addmm_(moved[0].T, x, alpha=rates[0])
        for b, d, rate in zip(circuit.biases, moved, rates, strict=True):
            if b is not None:
                b.add_(d.sum(0), alpha=rate)
        return CEPResult(circuit, free[-1], free, [relaxation.after], steps_of(x, free_steps, nudged_steps))


def low_rank_pays(circuit: Circuit, batch: int) -> bool:
    """Whether constant inner weights and corrections, 8 B^2 n a step summed over layers, take fewer operations than
    moving the weights, 4 B n n' summed over connections."""
    units = sum(w.shape[0] for w in circuit.weights)
    return circuit.free_feedback is None and 2 * batch * units < sum(w.numel() for w in circuit.weights[1:])


def _relaxed(circuit: Circuit, x: Tensor, steps: int) -> Relaxation:
    relaxation = Relaxation(circuit, x)
    for _ in range(steps):
        relaxation.step()
    return relaxation


def _nudge_literally(
    relaxation: Relaxation, circuit: Circuit, nudge: Nudge, steps: int, rates: Sequence[float], gram: Tensor
) -> None:
    """The nudged phase; every inner weight moves after each step."""
    sign = gram.new_ones(2 * len(gram), 1)
    sign[len(gram) :] = -1
    for _ in range(steps):
        relaxation.step(nudge)
        before, after = relaxation.before, relaxation.after
        moved = [b - a for a, b in zip(before, after, strict=True)]
        relaxation.drives[0].addmm_(gram, moved[0])
        for c in range(1, len(after)):
            relaxation.drives[c].add_(moved[c].sum(0), alpha=rates[c])
            if circuit.free_feedback is not None:
                circuit.weights[c].addmm_(moved[c].T, before[c - 1], alpha=rates[c])
                circuit.feedback(c).addmm_(before[c].T, moved[c - 1], alpha=rates[c])
            else:
                # s'^T s' - s^T s in one pass over the weights, from the buffers that hold both.
                below = relaxation.buffers[c - 1] * sign
                rate = rates[c] if relaxation.is_after_first else -rates[c]
                circuit.weights[c].addmm_(relaxation.buffers[c].T, below, alpha=rate)


def _nudge_at_low_rank(
    relaxation: Relaxation, circuit: Circuit, nudge: Nudge, steps: int, rates: Sequence[float], gram: Tensor
) -> None:
    """The nudged phase on constant inner weights, which move at its end.

    With D = s - s_free and m the neighbours of layer l, the moved weights and biases would have added to its drive
    (sum of rate s[m] s[m]^T + bias) D[l] + (sum of rate s[m] D[m]^T) s_free[l], bias: the rate in every entry, in layer
    0 the Gram matrix of the input.
    """
    batch, layers = len(gram), len(rates)
    # Blocks of rows s, D, s_free: of a neighbour the first two are needed, of the layer itself the last two.
    stacks = [torch.cat([s, torch.zeros_like(s), s]) for s in relaxation.after]
    seen, acting = [stack[: 2 * batch] for stack in stacks], [stack[batch:] for stack in stacks]
    biases = [torch.full_like(gram, rate) for rate in rates]
    constants = [torch.cat([b, torch.zeros_like(b)], 1) for b in (gram, *biases[1:])]
    products, factors = ([torch.empty_like(c) for c in constants] for _ in range(2))
    neighbours = [
        [(products[other], rates[max(layer, other)]) for other in (layer - 1, layer + 1) if 0 <= other < layers]
        for layer in range(layers)
    ]
    corrections = list(zip(factors, acting, strict=True))
    for _ in range(steps):
        for s, both, product in zip(relaxation.after, seen, products, strict=True):
            torch.mm(s, both.T, out=product)
        for layer, factor in enumerate(factors):
            total = constants[layer]
            for product, rate in neighbours[layer]:
                total = torch.add(total, product, alpha=rate, out=factor)
        relaxation.step(nudge, corrections)
        for s, stack in zip(relaxation.after, stacks, strict=True):
            stack[:batch].copy_(s)
            torch.sub(s, stack[2 * batch :], out=stack[batch : 2 * batch])
    for c in range(1, layers):
        circuit.weights[c].addmm_(acting[c].T, seen[c - 1], alpha=rates[c])
