"""A circuit and a nudge as the ops take them; ``csrc/library.cpp`` says what their arguments are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .spec.connections import POOLS_BY_LETTER, Convolution, Structure
from .spec.dynamics import Circuit, Nudge
from .tracing import DENSE


def parameters_of(circuit: Circuit, like: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and feedback weights; an empty tensor, as ``like`` makes it, for a bias that does not exist."""
    biases = [like.new_empty(0) if b is None else b for b in circuit.biases]
    return circuit.weights, biases, circuit.free_feedback or []


def nudge_arguments(nudge: Nudge) -> dict[str, Any]:
    return {"beta": nudge.beta, "nudge_at": nudge.at, "loss": nudge.loss}


def dynamics_arguments(circuit: Circuit) -> dict[str, Any]:
    d = circuit.dynamics
    return {
        "activation": d.activation,
        "output_activation": d.output_activation,
        "dynamics": d.kind,
        "dt": d.dt,
        "clip": d.clip,
        "schedule": d.schedule,
        "feedback": "tied" if circuit.free_feedback is None else "free",
        "readout": circuit.structure.has_readout,
        **_structure(circuit.structure),
    }


DENSE_CHAIN = {"strides": (), "paddings": (), "pools": "", "windows": (), "joined": (), "turns": ()}


def _structure(structure: Structure) -> dict[str, Any]:
    """How layers are joined."""
    settings: dict[str, Any] = dict(DENSE_CHAIN)
    if not structure.is_chain:
        settings["joined"] = [layer for c in structure.moving for layer in (c.below, c.above)]
    if structure.turns is not None:
        turn_of = {layer: turn for turn, layers in enumerate(structure.turns) for layer in layers}
        settings["turns"] = [turn_of[layer] for layer in range(structure.layers)]
    if not structure.convolutions:
        return settings
    made = [c.convolution for c in structure.moving]
    while made and made[-1] is None:
        made.pop()
    shown = [c or Convolution() for c in made]
    settings["strides"] = [number for c in shown for number in c.stride]
    settings["paddings"] = [number for c in shown for number in c.padding]
    settings["pools"] = _pool_letters(made)
    settings["windows"] = [number for c in shown for number in c.window]
    return settings


def _pool_letters(made: Sequence[Convolution | None]) -> str:
    letters = {pool: letter for letter, pool in POOLS_BY_LETTER.items()}
    return "".join(DENSE if c is None else letters[c.pool] for c in made)
