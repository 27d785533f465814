"""Teams of blocks under the emulation: how large they are, and by which calls they are tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from agreement import Results, results_of
from emulated_device import EmulatedDevice, compiled_kernels
from kernel_runs import run_relax
from project import EMULATED_PROGRAMS
from torch import Tensor
from variants import VARIANTS, build

from ceprop_cuda.spec.dynamics import Circuit, Nudge

SOURCE = EMULATED_PROGRAMS / "run_teams.cpp"
Device = Callable[..., EmulatedDevice]
# Blocks of a team: one by itself, or of a cluster. Of how many samples a group is, and how many clusters run at once,
# the seed of each call decides.
BLOCKS = [1, 2, 3, 7, 16]
# One layer, and more layers than a warp has units for; chunks of sources with and without tails; one sample, and more
# than teams take at once.
SHAPES = [((31, 100), 20), ((3, 33, 1), 1), ((100, 1, 31, 3, 33), 7), ((20, 133, 160, 7), 70), ((9, 260, 7), 40)]
NETWORKS = [v for v in VARIANTS if not v.get("readout")] + [
    {**VARIANTS[number], "shape": shape} for number, shape in zip((0, 11, 22, 31, 33), SHAPES, strict=True)
]
SMALL = {**VARIANTS[0], "shape": ((20, 33, 140, 7), 5)}  # of the network
JOINT = {"loss": "cross_entropy", "at": "drive", "output_activation": "linear"}
# What is different: of the network; of the calls.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {}),
    "cross-entropy": (JOINT, {}),
    "asynchronous cross-entropy": ({**JOINT, "schedule": "asynchronous"}, {"symmetric": True}),
    "symmetric": ({}, {"symmetric": True}),
    "free feedback": ({"feedback": "free"}, {}),
    "shared update": ({"feedback": "free"}, {"shared_update": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous"}, {}),
    "no free steps": ({"dynamics": "energy"}, {"free_steps": 0, "nudged_steps": 1}),
    "many samples": ({"shape": ((9, 20, 7), 70)}, {}),
}
NOT_FINITE = "not finite"  # the calls of "tied" with an input that is no number


def devices(folder: Path) -> Device:
    """Makes a device of teams with so many blocks and more shared memory than any has. Its calls' files lie in
    ``folder``."""

    def make(blocks: int = 3, name: str = "plain", **settings: Any) -> EmulatedDevice:
        chosen = {"multiprocessors": 4, "cluster_blocks": blocks if blocks > 1 else 0, "shared_bytes": 4 << 20}
        return EmulatedDevice(compiled_kernels(name, SOURCE), folder, **{**chosen, **settings})

    return make


def team_runs(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of call that teams take, under one name each."""
    found = run_relax(module, circuit, x, nudge)
    for symmetric in (False, True):
        for shared_update in (False, True) if circuit.free_feedback else (False,):
            common = {"symmetric": symmetric, "shared_update": shared_update}
            ran = module.ep_step(circuit, x, nudge, free_steps=8, nudged_steps=5, **common)
            found |= {f"ep {common} {key}": value for key, value in results_of(ran, circuit).items()}
    return found


def call_both_ops(device: EmulatedDevice, what: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What a call of each op that teams have gives."""
    of_network, of_calls = CALLS["tied" if what == NOT_FINITE else what]
    problem, nudge = build({**SMALL, **of_network}, dtype)
    circuit, x, _ = problem
    if what == NOT_FINITE:
        x[-1, -1] = float("nan")
    settings = {"free_steps": 3, "nudged_steps": 2, **of_calls}
    relaxed = device.relax(circuit, x, 3, None, nudge)
    ran = device.ep_step(circuit, x, nudge, **settings)
    return [*relaxed.states, *(tensor for tensors in results_of(ran, circuit).values() for tensor in tensors)]
