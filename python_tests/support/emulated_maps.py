"""Clusters that take chains with maps through whole phases, under the emulation: on which networks, and by which calls
they are tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from convolution_variants import Chain, build_chain, chain_variants, same
from emulated_calls import call_every_op_on
from emulated_device import EmulatedDevice
from emulated_library import Served, library_program
from problems import Problem
from torch import Tensor

from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import Nudge

# Kernels and poolings of every kind between layers; rows that fill 16 bytes and that do not; more than 32 channels
# below; more positions than a tile and a patch have; windows that leave something over; no convolution between layers;
# none of the channels for some block of a layer.
CHAINS = [
    Chain((2, 7, 6), 2, (3, 5), ((3, 3), (3, 3)), (same(1), same(1)), (7,)),
    Chain((1, 12, 12), 2, (4, 9), ((3, 3), (5, 5)), (same(1, "none"), same()), (6,)),
    Chain((1, 6, 6), 3, (34, 5), ((3, 3), (3, 3)), (same(0, "avg"), same(1, "avg")), (5, 3)),
    Chain(
        (1, 8, 13),
        2,
        (2, 6, 5),
        ((2, 3), (3, 3), (5, 5)),
        (same(0, "none"), Convolution((1, 1), (1, 1), "max", (3, 2)), same(2, "none")),
        (9, 4),
    ),
    Chain((1, 6, 6), 2, (5,), ((3, 3),), (same(1),), (7, 4)),
]
VARIANTS = [
    variant
    for variant in chain_variants(len(CHAINS))
    if variant["feedback"] == "tied"
    and not variant.get("readout")
    and (variant["dynamics"] == "prototypical" or variant["loss"] == "mse")
]
SMALL = {**VARIANTS[0], "chain": 0}
JOINT = {"loss": "cross_entropy", "at": "drive", "output_activation": "linear"}
# What is different: of the network; of the calls.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({"chain": 1}, {}),
    "symmetric": ({}, {"symmetric": True}),
    "cross-entropy": ({**JOINT, "schedule": "asynchronous"}, {"symmetric": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous", "chain": 2}, {"free_steps": 3}),
    "three maps": ({"chain": 3}, {}),
    "dense inside": ({"chain": 4}, {}),
    "tolerance": ({}, {"tolerance": 1e-3, "free_steps": 9, "nudged_steps": 5}),
}
BLOCKS = (1, 2, 3, 5)  # of a cluster
Device = Callable[..., EmulatedDevice]


def build(variant: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> tuple[Problem, Nudge]:
    return build_chain(variant, dtype, seed, CHAINS)


def call_every_op(device: EmulatedDevice, what: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What a call of each op gives."""
    of_network, of_calls = CALLS[what]
    return call_every_op_on(device, *build({**SMALL, **of_network}, dtype), of_calls)


def devices(folder: Path) -> Device:
    """Makes a device whose clusters have so many blocks, and as much memory as they like. Those that leave a barrier
    out, or count something, run each call in a program of its own."""
    served: dict[str, Served] = {}

    def make(blocks: int = 3, name: str = "plain", **settings: Any) -> EmulatedDevice:
        of_clusters = {"team": "cluster", "cluster_blocks": blocks, "shared_bytes": 4 << 20}
        if settings:
            return EmulatedDevice(library_program(name), folder, **{**of_clusters, **settings})
        return served.setdefault(f"{name} {blocks}", Served(library_program(name), folder, **of_clusters))

    return make
