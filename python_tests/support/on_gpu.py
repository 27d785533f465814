"""Work on a GPU with tensors that come from the CPU and go back there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.arguments.choices import EngineName
from ceprop_cuda.spec.dynamics import Circuit

GPU = "cuda"


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with ``change`` made to all tensors in its lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(change, getattr(value, f.name)) for f in fields(value) if f.init})
    if isinstance(value, (list, tuple)):
        items = [mapped(change, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def there(value: Any, device: str = GPU) -> Any:
    return mapped(lambda tensor: tensor.to(device), value)


OPS = {name: getattr(ops, name) for name in ("relax", "ep_step", "cep_step")}


@contextmanager
def forced(engine: EngineName) -> Iterator[None]:
    """Kernels of this engine run all ops, whatever would be chosen or is forced around this; "auto": as chosen."""
    before = {name: getattr(ops, name) for name in OPS}

    def by_engine(op: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **settings: op(*args, **settings | {"engine": engine})

    for name, op in OPS.items():
        setattr(ops, name, by_engine(op))
    try:
        yield
    finally:
        for name, op in before.items():
            setattr(ops, name, op)


@dataclass(frozen=True)
class OnGpu:
    """Stands where the modules ops and reference stand: takes and returns tensors on the CPU, and works on a GPU."""

    precision: str = "exact"
    device: str = GPU

    def relax(self, *args: Any, **settings: Any) -> Any:
        return self._run(ops.relax, *args, **settings)

    def ep_step(self, *args: Any, **settings: Any) -> Any:
        return self._run(ops.ep_step, *args, **settings)

    def cep_step(self, circuit: Circuit, *args: Any, **settings: Any) -> Any:
        ran = self._run(ops.cep_step, circuit, *args, **settings)
        for p, moved in zip(circuit.parameters(), ran.circuit.parameters(), strict=True):
            p.copy_(moved)
        return ran

    def _run(self, op: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        return there(op(*there(args, self.device), **settings, precision=self.precision), "cpu")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def learned(net: cep.Network) -> list[Tensor]:
    """The parameters, and their gradients where there are any."""
    return [*net.parameters(), *(p.grad for p in net.parameters() if p.grad is not None)]
