"""The calls whose bits compare.py compares. Takes the test programs and variants of python_tests/support."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_chains
import emulated_library
import emulated_teams
import torch
from agreement import Results
from convolution_variants import build_chain, chain_variants, name_of_chain
from kernel_runs import all_runs, rates
from variants import VARIANTS, build, copy_of, name_of

from ceprop_cuda import ops
from ceprop_cuda.spec import reference

DTYPES = [torch.float32, torch.float64]
Cases = Iterator[tuple[str, Results]]


def digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def with_tolerance(module: Any, circuit: Any, x: torch.Tensor, nudge: Any) -> Results:
    """Calls that end when states have settled, where they do."""
    phases = {"free_steps": 30, "nudged_steps": 10, "tolerance": 0.02}
    relaxed = module.relax(circuit, x, 30, tolerance=0.02)
    ep = module.ep_step(circuit, x, nudge, **phases, symmetric=True)
    cep = module.cep_step(copy_of(circuit), x, nudge, **phases, symmetric=True, lr=rates(circuit))
    return {
        "tolerance relax": [*relaxed.states, relaxed.steps],
        "tolerance ep": [*ep.gradients.parameters(), ep.steps],
        "tolerance cep": [*cep.circuit.parameters(), cep.steps],
    }


def runs(module: Any, variant: dict[str, Any], problem: Any, nudge: Any) -> Results:
    circuit, x, _ = problem
    return all_runs(variant, module, circuit, x, nudge) | with_tolerance(module, circuit, x, nudge)


def dense(module: Any, variants: list[dict[str, Any]], where: str) -> Cases:
    for variant in variants:
        for dtype in DTYPES:
            yield f"{where} {name_of(variant)} {dtype}", runs(module, variant, *build(variant, dtype))


def chains(module: Any, variants: list[dict[str, Any]], where: str, of: Any = build_chain) -> Cases:
    for variant in variants:
        for dtype in DTYPES:
            yield f"{where} {name_of_chain(variant)} {dtype}", runs(module, variant, *of(variant, dtype))


def by_reference(folder: Path) -> Cases:
    torch.set_num_threads(1)
    yield from dense(reference, VARIANTS, "reference")
    yield from chains(reference, chain_variants(), "reference")


def by_cpu(folder: Path) -> Cases:
    for kernels in ops.build_info()["cpu_kernels_runnable"].split(", "):
        os.environ["CEPROP_CPU_CAPABILITY"] = kernels
        for threads in (1, 3):
            torch.set_num_threads(threads)
            yield from dense(ops, VARIANTS, f"cpu {kernels} {threads}")
            yield from chains(ops, chain_variants(), f"cpu {kernels} {threads}")
    del os.environ["CEPROP_CPU_CAPABILITY"]
    torch.set_num_threads(1)


def by_teams(folder: Path) -> Cases:
    device = emulated_teams.devices(folder)
    names = [*emulated_teams.TEAMS]
    for number, variant in enumerate(emulated_teams.NETWORKS):
        team, dtype = names[number % len(names)], DTYPES[number // len(names) % 2]
        module, ((circuit, x, _), nudge) = device(team), build(variant, dtype)
        found = emulated_teams.team_runs(module, circuit, x, nudge)
        if team in emulated_teams.GRIDS:
            found |= with_tolerance(module, circuit, x, nudge)
        yield f"teams {number} {team} {dtype}", found


def by_library(folder: Path) -> Cases:
    device = emulated_library.Served(emulated_library.library_program("plain"), folder)
    yield from chains(device, emulated_chains.VARIANTS, "library", emulated_chains.build)


ENGINES = {
    "reference": by_reference,
    "cpu": by_cpu,
    "teams": by_teams,
    "library": by_library,
}


def digests(engine: str, folder: Path) -> dict[str, str]:
    """By name of the call and of the list of results."""
    with torch.no_grad():
        return {
            f"{case} {kind}": digest(tensors)
            for case, results in ENGINES[engine](folder)
            for kind, tensors in results.items()
        }
