"""The CUDA kernels of dense layers under the emulation: where they run, on which networks, by which calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import torch
from agreement import results_of
from emulated_device import EmulatedDevice, Refused, compiled_kernels
from kernel_runs import rates
from problems import Problem
from project import EMULATED_PROGRAMS
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of

from ceprop_cuda.spec.dynamics import Nudge

SOURCE = EMULATED_PROGRAMS / "run_call.cpp"
# Where weights and states lie, and which form C-EP's inner updates take wherever both are exact.
PLACES, FORMS = ["resident", "streamed", "cluster"], ["literal", "low_rank"]
KERNELS = [f"{place}-{form}" for place, form in product(PLACES, FORMS)]
BLOCKS = [1, 3, 7, 132]
Device = Callable[..., EmulatedDevice]
# One layer and four, of one unit and of many; one sample, and more than a pass has in float64 (32) or float32 (64).
MORE_SHAPES = [((31, 100), 20), ((3, 33, 1), 1), ((100, 1, 31, 3, 33), 7), ((20, 33, 40, 7), 70), ((9, 20, 7), 40)]
NETWORKS = VARIANTS + [{**VARIANTS[11 * i % 40], "shape": shape} for i, shape in enumerate(MORE_SHAPES)]


def columns(kernel: str, blocks: int, dtype: torch.dtype, variant: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings of a case, by name."""
    place, form = kernel.split("-")
    chosen = {"place": place, "form": form, "blocks": blocks, "dtype": dtype, **variant}
    return [(name, chosen[name]) for name in chosen if name not in ("shape", "readout", "output_activation")]


def kernels_of(variant: dict[str, Any]) -> list[str]:
    has_low_rank = variant["feedback"] == "tied" and variant["schedule"] == "synchronous"
    return [kernel for kernel in KERNELS if has_low_rank or kernel.endswith("literal")]


def rotation() -> Iterator[tuple[str, int, torch.dtype, dict[str, Any]]]:
    """Every network with the kernel, the number of blocks and the dtype that have met its settings least often; then
    those once more that have settings to meet."""
    seen: Counter = Counter()
    for again, variant in [(again, variant) for again in (False, True) for variant in NETWORKS]:
        options = [(*chosen, variant) for chosen in product(kernels_of(variant), BLOCKS, TOLERANCES)]
        pairs = {index: list(combinations(columns(*option), 2)) for index, option in enumerate(options)}
        if again:
            best = max(pairs, key=lambda index: sum(not seen[pair] for pair in pairs[index]))
        else:
            best = min(pairs, key=lambda index: sum(seen[pair] for pair in pairs[index]))
        if again and all(seen[pair] for pair in pairs[best]):
            continue
        seen.update(pairs[best])
        yield options[best]


ROTATION = [
    *rotation(),
    *((kernel, 3, torch.float32, {**VARIANTS[0], "shape": ((20, 33, 40, 7), 70)}) for kernel in KERNELS[::2]),
]
SMALL = {**VARIANTS[0], "shape": ((20, 33, 40, 7), 5)}  # of the network
READOUT = {"loss": "cross_entropy", "at": "drive", "readout": True}
# What is different: of the network; of the calls.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {}),
    "readout": (READOUT, {}),
    "symmetric": ({}, {"symmetric": True}),
    "tolerance": ({}, {"tolerance": 1e-3, "free_steps": 9, "nudged_steps": 5}),
    "free feedback": ({"feedback": "free"}, {}),
    "accumulate": ({"feedback": "free"}, {"accumulate": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous"}, {}),
    "one step": ({"feedback": "free"}, {"symmetric": True, "accumulate": True, "free_steps": 0, "nudged_steps": 1}),
    "two passes": ({**READOUT, "shape": ((9, 20, 7), 70)}, {}),
}
KERNELS_AND_CALLS = [
    (kernel, what) for what, (of_network, _) in CALLS.items() for kernel in kernels_of({**SMALL, **of_network})
]


def call_every_op(
    device: EmulatedDevice, dtype: torch.dtype, of_network: dict[str, Any], of_calls: dict[str, Any]
) -> list[Tensor]:
    """What one call of each op gives."""
    return call_every_op_on(device, *build({**SMALL, **of_network}, dtype), of_calls)


def call_every_op_on(device: EmulatedDevice, problem: Problem, nudge: Nudge, of_calls: dict[str, Any]) -> list[Tensor]:
    settings = {"free_steps": 2, "nudged_steps": 2, **of_calls}
    accumulate = settings.pop("accumulate", False)
    circuit, x, _ = problem
    relaxed = device.relax(circuit, x, settings["free_steps"], None, nudge, settings.get("tolerance"))
    ep = device.ep_step(circuit, x, nudge, accumulate=accumulate, **settings)
    cep = device.cep_step(copy_of(circuit), x, nudge, lr=rates(circuit), **settings)
    learned = [*results_of(ep, circuit).values(), *results_of(cep, circuit).values()]
    return [*relaxed.states, *chain.from_iterable(learned)]


def devices(folder: Path) -> Device:
    """Makes a device for one of KERNELS, with at most so many blocks and more shared memory than any has: so few blocks
    would otherwise not hold so many tiles. Its calls' files lie in ``folder``."""

    def make(kernel: str, blocks: int = 3, name: str = "plain", **settings: Any) -> EmulatedDevice:
        place, form = kernel.split("-")
        chosen = {
            "multiprocessors": blocks,
            "cluster_blocks": min(blocks, 16) if place == "cluster" else 0,
            "resident": place != "streamed",
            "low_rank": form == "low_rank",
            "shared_bytes": 4 << 20,
        }
        return EmulatedDevice(compiled_kernels(name, SOURCE), folder, **{**chosen, **settings})

    return make


def least_memory(device: Device, kernel: str, problem: Problem) -> int:
    """Bytes of shared memory that a block must have, but for 64."""
    too_little, enough = 0, 4 << 20
    while enough - too_little > 64:
        middle = (too_little + enough) // 2
        try:
            device(kernel, shared_bytes=middle).relax(problem.circuit, problem.x, 0)
            enough = middle
        except Refused as refused:
            assert "does not fit" in str(refused)
            too_little = middle
    return enough
