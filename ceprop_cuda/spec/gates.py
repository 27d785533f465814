"""The gate of a vector field's contrast: the slopes of rho that multiply what units have moved by.

A unit that steps to rho(a) moves its output by rho'(a) times what moves its drive a. So the step's derivative by the
weights holds rho'(a), and Theorem 1 of arXiv 2005.04169 (C-VF) asks for it:

    dW[e] = (rho'(a[v]) (s'[v] - s[v]))^T s[u] / (beta B),   dV[e] = s[v]^T (rho'(a[u]) (s'[u] - s[u])) / (beta B)

for the connection e from u up to v. "unit": a is all that rho is applied to when the unit moves from s to s', a nudge
at the drive and a readout's included. "connection": a is the term of the drive that comes through e alone, F_e(s[u])
for W[e] and b[e], F_e^T(s[v]; s[u]) for V[e], as an earlier version of the authors' code had it. None: no factor. In
energy dynamics a is the drive as well, though rho is not applied to it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from .dynamics import Circuit, Nudge, Push, activation_of, emitted, push, rho_prime, step


class Slopes(NamedTuple):
    """rho'(a) by connection, shaped like the state of the layer that has moved."""

    above: list[Tensor]  # of the layer above: for W[e] and b[e]
    below: dict[int, Tensor]  # of the layer below, if it is not the input: for V[e]


def check_gate(circuit: Circuit, gate: str | None, shared_update: bool) -> None:
    """ValueError if the circuit's contrast has no gate."""
    if gate is not None and (circuit.free_feedback is None or shared_update):
        got = "a shared update" if shared_update else "tied feedback"
        raise ValueError(f"gate={gate!r} is of a vector field's own contrast (feedback='free'), got {got}")


def step_with_slopes(
    circuit: Circuit, x: Tensor, states: Sequence[Tensor], nudge: Nudge | None, gate: str | None
) -> tuple[list[Tensor], Slopes | None]:
    """A step, and the slopes at the drives by which it moved the units; None without a gate."""
    if gate is None:
        return step(circuit, x, states, nudge), None
    pushes: dict[int, Push] = {}
    after = step(circuit, x, states, nudge, pushes=pushes)
    return after, _slopes(circuit, pushes, gate)


def slopes_at(circuit: Circuit, x: Tensor, states: Sequence[Tensor], gate: str | None) -> Slopes | None:
    """The slopes at the drives of these states themselves, without a nudge."""
    if gate is None:
        return None
    seen = emitted(circuit, x, states)
    pushes = {layer: push(circuit, seen, states, layer, None) for layer in range(circuit.layers)}
    return _slopes(circuit, pushes, gate)


def _slopes(circuit: Circuit, pushes: Mapping[int, Push], gate: str) -> Slopes:
    def slope(layer: int, part: Tensor) -> Tensor:
        return rho_prime(activation_of(circuit, layer), part)

    edges, inner = circuit.connections, circuit.structure.inner
    if gate == "unit":
        whole = [slope(layer, pushes[layer].drive + pushes[layer].inside) for layer in range(circuit.layers)]
        return Slopes([whole[c.above] for c in edges], {e: whole[edges[e].below] for e in inner})
    return Slopes(
        [slope(c.above, pushes[c.above].below[e]) for e, c in enumerate(edges)],
        {e: slope(edges[e].below, pushes[edges[e].below].above[e]) for e in inner},
    )
