"""The network and batch that tests of the public API work on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ceprop_cuda as cep

BATCH = 3
SIZES = (6, 5, 4, 3)
X, Y = torch.zeros(BATCH, 6, dtype=torch.float64), torch.zeros(BATCH, dtype=torch.int64)  # where values do not matter


def network(bias: bool = True, **settings: Any) -> cep.Network:
    return cep.mlp(*SIZES, bias=bias, **settings).double()


def batch() -> tuple[Tensor, Tensor]:
    """x ``(B, 6)`` and class indices ``(B,)``."""
    return torch.rand(BATCH, SIZES[0], dtype=torch.float64), torch.tensor([0, 2, 1])
