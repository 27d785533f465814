"""Chains with convolutions for the emulation: small ones, and by which calls they are tested."""

from __future__ import annotations

from typing import Any

import torch
from convolution_variants import Chain, build_chain, chain_variants, same
from emulated_calls import READOUT, call_every_op_on
from emulated_device import EmulatedDevice
from problems import Problem
from torch import Tensor

from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import Nudge

# Kernels, strides, paddings, windows and channels of many sizes; windows that leave something over at the edges; two
# dense layers; a map of one place.
CHAINS = [
    Chain((2, 6, 7), 2, (3, 5), ((3, 2), (2, 3)), (same(1), same(1)), (4,)),
    Chain(
        (1, 7, 6),
        3,
        (3, 2),
        ((2, 2), (3, 3)),
        (Convolution((1, 1), (1, 0), "avg", (2, 2)), Convolution((2, 1), (1, 1), "none")),
        (4, 3),
    ),
    Chain((2, 6, 7), 2, (4,), ((3, 3),), (Convolution((1, 1), (1, 1), "max", (3, 2)),), (3,)),
    Chain(
        (2, 9, 8),
        2,
        (3, 18),
        ((2, 2), (3, 3)),
        (Convolution((1, 2), (1, 0), "none"), Convolution((2, 1), (2, 1), "max", (2, 2))),
        (3,),
    ),
    Chain((1, 8, 8), 1, (2, 20), ((3, 3), (2, 2)), (same(), Convolution((3, 2), (2, 1), "none")), (2,)),
]
VARIANTS = chain_variants(len(CHAINS))


def build(variant: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> tuple[Problem, Nudge]:
    return build_chain(variant, dtype, seed, CHAINS)


# What is different: of the network; of the calls.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {}),
    "readout": (READOUT, {}),
    "symmetric": ({"chain": 1}, {"symmetric": True}),
    "symmetric readout": ({**READOUT, "chain": 2}, {"symmetric": True}),
    "tolerance": ({}, {"tolerance": 1e-3, "free_steps": 9, "nudged_steps": 5}),
    "free feedback": ({"feedback": "free", "chain": 3}, {}),
    "shared update": ({"feedback": "free"}, {"shared_update": True}),
    "accumulate": ({"feedback": "free"}, {"accumulate": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous"}, {}),
    "cross-entropy": ({"loss": "cross_entropy", "output_activation": "linear", "at": "drive"}, {}),
}


def call_every_op(device: EmulatedDevice, dtype: torch.dtype, what: str) -> list[Tensor]:
    """What one call of each op gives."""
    of_network, of_calls = CALLS[what]
    return call_every_op_on(device, *build({**VARIANTS[0], **of_network}, dtype), of_calls)
