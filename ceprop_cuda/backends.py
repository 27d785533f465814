"""What computes a network's phases and what it learns: the kernels or the reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from . import ops
from .arguments.choices import Backend, EngineName, Precision, Update
from .output.messages import say
from .spec import reference
from .spec.dynamics import Circuit, Nudge
from .spec.reference import CEPResult, EPResult, Relaxed
from .validate import dense_target


def exact(x: Tensor) -> AbstractContextManager[object]:
    """Where the library computes: in its parameters' dtype, whatever autocast says."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class FusedUnavailable(RuntimeError):
    """``backend="fused"`` was asked for, and the kernels cannot take this network or input."""


@cache
def say_once(level: int, message: str) -> None:
    say(message, level)


def report(level: int, message: str) -> None:
    """Say ``message`` once in the log; nothing while torch.compile traces, which cannot take logging."""
    if not torch.compiler.is_compiling():
        say_once(level, message)


@runtime_checkable
class Engine(Protocol):
    """What computes phases and learning. The functions are those of ``spec/reference.py``, which says what they do."""

    @property
    def stores_only_finite(self) -> bool:
        """Whether cep_step moves the parameters in place, and nothing moves where numbers are not finite."""

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> str | None:
        """Why it cannot take this input, or learn from it with this gate; None if it can."""

    def relax(self, circuit: Circuit, x: Tensor, steps: int, **settings: Any) -> Relaxed: ...

    def ep_step(
        self, circuit: Circuit, x: Tensor, nudge: Nudge, *, free_steps: int, nudged_steps: int, **settings: Any
    ) -> EPResult: ...

    def cep_step(
        self,
        circuit: Circuit,
        x: Tensor,
        nudge: Nudge,
        *,
        free_steps: int,
        nudged_steps: int,
        lr: Sequence[float],
        **settings: Any,
    ) -> CEPResult: ...


def _dense(nudge: Nudge, circuit: Circuit, x: Tensor) -> Nudge:
    """``nudge`` as the reference takes it."""
    return replace(nudge, target=dense_target(nudge.target, x, circuit.classes))


class Reference:
    """The specification as an engine: it takes everything."""

    stores_only_finite = False

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> None:
        return None

    def relax(self, circuit: Circuit, x: Tensor, steps: int, **settings: Any) -> Relaxed:
        if settings.get("nudge") is not None:
            settings["nudge"] = _dense(settings["nudge"], circuit, x)
        return reference.relax(circuit, x, steps, **settings)

    def ep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> EPResult:
        return reference.ep_step(circuit, x, _dense(nudge, circuit, x), **settings)

    def cep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> CEPResult:
        ops.check_writable(circuit)  # as the kernels do
        return reference.cep_step(circuit, x, _dense(nudge, circuit, x), **settings)


class Kernels(NamedTuple):
    """The compiled kernels as an engine, and the settings that are theirs alone; see :class:`ceprop_cuda.CEP`."""

    precision: Precision = "exact"
    engine: EngineName = "auto"
    update: Update = "auto"

    @property
    def stores_only_finite(self) -> bool:
        return True

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> str | None:
        return ops.obstacle(circuit, x, self.precision, gate, self.engine)

    def relax(self, circuit: Circuit, x: Tensor, steps: int, **settings: Any) -> Relaxed:
        return ops.relax(circuit, x, steps, **settings, precision=self.precision, engine=self.engine)

    def ep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> EPResult:
        return ops.ep_step(circuit, x, nudge, **settings, precision=self.precision, engine=self.engine)

    def cep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> CEPResult:
        settings |= {"precision": self.precision, "engine": self.engine, "update": self.update}
        return ops.cep_step(circuit, x, nudge, **settings)


REFERENCE = Reference()


def engine_for(backend: Backend, kernels: Kernels, circuit: Circuit, x: Tensor, gate: str | None = None) -> Engine:
    """``kernels`` or the reference, as ``backend`` says. ``gate``: what the call learns with.

    Raises FusedUnavailable if ``backend`` is "fused" and the kernels cannot take this network or input.
    """
    if backend == "reference":
        return REFERENCE
    obstacle = kernels.obstacle(circuit, x, gate)
    if obstacle is None:
        report(logging.INFO, f"running the compiled kernels on {x.device.type}")
        return kernels
    if backend == "fused":
        raise FusedUnavailable(f"backend='fused' cannot run this: {obstacle}; use backend='auto' or 'reference'")
    report(logging.WARNING, f"backend='auto' runs the slow reference: {obstacle}")
    return REFERENCE
