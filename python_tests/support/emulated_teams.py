"""Teams of blocks under the emulation: which kinds there are, and by which calls they are tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from agreement import Results, results_of
from emulated_calls import call_every_op_on
from emulated_device import EmulatedDevice, compiled_kernels
from kernel_runs import rates, run_relax
from project import EMULATED_PROGRAMS
from torch import Tensor
from variants import VARIANTS, build, copy_of

from ceprop_cuda.spec.dynamics import Circuit, Nudge

SOURCE = EMULATED_PROGRAMS / "run_teams.cpp"
Device = Callable[..., EmulatedDevice]
# Of how many samples a group is, and how many clusters run at once, the seed of each call decides.
CLUSTERS = {f"cluster of {blocks}": {"team": "cluster", "cluster_blocks": blocks} for blocks in (2, 3, 7, 16)}
# The last has blocks without work.
GRIDS = {f"grid of {blocks}": {"team": "grid", "multiprocessors": blocks} for blocks in (1, 3, 26)}
# Where C-EP's weights move in all blocks, as they do if one team has no room for all samples.
THEN_GRIDS = {
    "block, then grid": {"team": "block, then grid"},
    "cluster of 3, then grid": {"team": "cluster, then grid", "cluster_blocks": 3},
}
TEAMS: dict[str, dict[str, Any]] = {"block": {"team": "block"}, **CLUSTERS, **THEN_GRIDS, **GRIDS}
SOME_TEAMS = ("block", "cluster of 3", "grid of 3")
# One layer, and more layers than a warp has units for; chunks of sources with and without tails; one sample, and more
# than teams take at once.
SHAPES = [((31, 100), 20), ((3, 33, 1), 1), ((100, 1, 31, 3, 33), 7), ((20, 133, 160, 7), 23), ((9, 260, 7), 21)]
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
    "symmetric": ({}, {"symmetric": True, "free_steps": 3}),
    "free feedback": ({"feedback": "free"}, {"gate": "connection"}),
    "shared update": ({"feedback": "free"}, {"shared_update": True}),
    "added up": ({"feedback": "free"}, {"accumulate": True, "symmetric": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous"}, {}),
    "no free steps": ({"dynamics": "energy"}, {"free_steps": 0, "nudged_steps": 1}),
    "many samples": ({"shape": ((9, 20, 7), 70)}, {}),
    "tolerance": ({}, {"tolerance": 1e-3, "free_steps": 9, "nudged_steps": 5}),
}
NOT_FINITE = "not finite"  # the calls of "tied" with an input that is no number


def calls_of(team: str) -> list[str]:
    """Those of CALLS that such a team takes."""
    return [what for what in CALLS if what != "tolerance" or team in GRIDS]


def devices(folder: Path) -> Device:
    """Makes a device for one of TEAMS with more shared memory than any has. Its calls' files lie in ``folder``."""

    def make(team: str = "cluster of 3", name: str = "plain", **settings: Any) -> EmulatedDevice:
        chosen = {"shared_bytes": 4 << 20, **TEAMS[team]}
        return EmulatedDevice(compiled_kernels(name, SOURCE), folder, **{**chosen, **settings})

    return make


def team_runs(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of call that teams take, under one name each."""
    found = run_relax(module, circuit, x, nudge)
    for symmetric in (False, True):
        for shared_update in (False, True) if circuit.free_feedback else (False,):
            common = {"symmetric": symmetric, "shared_update": shared_update, "free_steps": 8, "nudged_steps": 5}
            gates = (None, "unit", "connection") if circuit.free_feedback and not shared_update else (None,)
            gate = gates[(len(x) + symmetric) % len(gates)]
            learning = {"lr": rates(circuit), "weight_decay": 0.1 * symmetric, "gate": gate}
            all_ran = [
                ("ep", module.ep_step(circuit, x, nudge, **common)),
                ("cep", module.cep_step(copy_of(circuit), x, nudge, **common, **learning)),
            ]
            if circuit.free_feedback and not shared_update:
                by_steps = module.ep_step(circuit, x, nudge, **common, accumulate=True, gate=gate)
                all_ran.append(("ep by steps", by_steps))
            for name, ran in all_ran:
                found |= {f"{name} {common} {key}": value for key, value in results_of(ran, circuit).items()}
    return found


def call_every_op(device: EmulatedDevice, what: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What a call of each op gives."""
    of_network, of_calls = CALLS["tied" if what == NOT_FINITE else what]
    problem, nudge = build({**SMALL, **of_network}, dtype)
    if what == NOT_FINITE:
        problem.x[-1, -1] = float("nan")
    return call_every_op_on(device, problem, nudge, of_calls)
