"""A small network, its batches, and everything that takes a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ceprop_cuda as cep

BATCH = 5
SIZES = (11, 9, 7, 3)


def mlp(dtype: torch.dtype = torch.float64, **settings: Any) -> cep.Network:
    return cep.mlp(*SIZES, **settings).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x ``(B, 11)`` and class indices ``(B,)``."""
    return torch.rand(BATCH, SIZES[0], dtype=torch.float64).to(dtype), torch.arange(BATCH) % SIZES[-1]


def ep_rule(net: cep.Network, **settings: Any) -> cep.EP:
    return cep.EP(net, free_steps=20, nudged_steps=5, beta=0.2, **settings)


def cep_rule(net: cep.Network, **settings: Any) -> cep.CEP:
    return cep.CEP(net, free_steps=20, nudged_steps=5, beta=0.2, lr=(0.3, 0.2, 0.1), **settings)


# Everything that takes a backend, on float inputs of any dtype.
CALLS: dict[str, Callable[[cep.Network, Tensor, Tensor, str], object]] = {
    "relax": lambda net, x, _y, backend: net.relax(x, 5, backend=backend),
    "nudged relax": lambda net, x, y, backend: net.relax(x, 5, target=y, beta=0.2, backend=backend),
    "EP": lambda net, x, y, backend: ep_rule(net, backend=backend).backward(x, y),
    "CEP": lambda net, x, y, backend: cep_rule(net, backend=backend).step(x, y),
    "BPTT": lambda net, x, y, backend: cep.BPTT(net, 8, 3, backend=backend).backward(x, y),
    "predict": lambda net, x, y, backend: ep_rule(net, backend=backend).predict(x, y),
}


def flat(value: Any) -> list[Tensor]:
    """All tensors in a result of :data:`CALLS`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list):
        return [tensor for item in value for tensor in flat(item)]
    return flat([value.loss, *(item for item in vars(value).values() if not isinstance(item, str))])
