"""What computes a network's phases: the fused kernels or the reference."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import ops
from .spec import reference
from .spec.dynamics import Circuit

log = logging.getLogger("ceprop_cuda")


def exact(x: Tensor) -> AbstractContextManager[object]:
    """Where the library computes: in its parameters' dtype, whatever autocast says."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class FusedUnavailable(RuntimeError):
    """``backend="fused"`` was asked for, and the kernels cannot take this network or input."""


@cache
def say_once(level: int, message: str) -> None:
    log.log(level, message)


def report(level: int, message: str) -> None:
    """Say ``message`` once in the log; nothing while torch.compile traces, which cannot take logging."""
    if not torch.compiler.is_compiling():
        say_once(level, message)


def backend_module(
    backend: str, circuit: Circuit, x: Tensor, *, gate: str | None = None, **of_kernels: str
) -> tuple[ModuleType, dict[str, str]]:
    """The module whose ``relax``, ``ep_step`` and ``cep_step`` do the work, ``ops`` or ``reference``; and the settings
    of the kernels that its functions take: all, or none. ``gate``: what the call learns with.

    Raises FusedUnavailable if ``backend`` is "fused" and the kernels cannot take this network or input.
    """
    if backend == "reference":
        return reference, {}
    obstacle = ops.obstacle(circuit, x, of_kernels["precision"], gate)
    if obstacle is None:
        report(logging.INFO, f"running the fused kernels on {x.device.type}")
        return ops, of_kernels
    if backend == "fused":
        raise FusedUnavailable(f"backend='fused' cannot run this: {obstacle}; use backend='auto' or 'reference'")
    report(logging.WARNING, f"backend='auto' runs the slow reference: {obstacle}")
    return reference, {}
