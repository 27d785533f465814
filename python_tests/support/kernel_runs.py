"""Every kind of call of one network, under one name each."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from agreement import Results, results_of
from torch import Tensor
from variants import copy_of

from ceprop_cuda.spec.dynamics import Circuit, Nudge


def run_relax(module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    free = module.relax(circuit, x, 7).states
    return {"states": free + module.relax(circuit, x, 4, free, nudge).states}


def rates(circuit: Circuit) -> list[float]:
    """Rates that move each drive by a like amount: with 784 inputs at 0.02, learning itself would be unstable and turn
    rounding into large errors on either side. A convolution's contrast sums over about a hundred places; the
    connections that end at a layer share what moves it."""
    inputs = [w.shape[1] if w.ndim == 2 else 100 * w[0].numel() for w in circuit.weights]
    ends = [c.above for c in circuit.connections]
    sharing = [ends.count(above) for above in ends] + [1] * circuit.structure.has_readout
    return [
        0.3 * min(connection + 1, 5) / max(16, count) / by
        for connection, (count, by) in enumerate(zip(inputs, sharing, strict=True))
    ]


def all_runs(variant: dict[str, Any], module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of call that the variant's network takes, under one name each."""
    results = {f"relax {key}": value for key, value in run_relax(module, circuit, x, nudge).items()}
    shared = (False, True) if variant["feedback"] == "free" else (False,)
    for symmetric in (False, True):
        for shared_update in shared:
            common = {"symmetric": symmetric, "shared_update": shared_update}
            phases = {"free_steps": 8, "nudged_steps": 5, **common}
            for extra in (False, True):
                moved, learning = copy_of(circuit), {"lr": rates(circuit), "weight_decay": 0.1 * extra}
                for name, ran in (
                    ("ep", module.ep_step(circuit, x, nudge, **phases, accumulate=extra)),
                    ("cep", module.cep_step(moved, x, nudge, **phases, **learning)),
                ):
                    found = results_of(ran, circuit)
                    results |= {f"{name} {common} {extra} {key}": value for key, value in found.items()}
    return results


def gated_runs(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of call that learns with a gate."""
    phases: dict[str, Any] = {"free_steps": 6, "nudged_steps": 4}
    found: Results = {}
    for gate in ("unit", "connection"):
        for symmetric in (False, True):
            settings = phases | {"gate": gate, "symmetric": symmetric}
            for accumulate in (False, True):
                ran = module.ep_step(circuit, x, nudge, **settings, accumulate=accumulate)
                found |= {f"{gate} {symmetric} {accumulate} {k}": v for k, v in results_of(ran, circuit).items()}
            moved = module.cep_step(copy_of(circuit), x, nudge, **settings, lr=rates(circuit), weight_decay=0.1)
            found |= {f"{gate} {symmetric} cep {k}": v for k, v in results_of(moved, circuit).items()}
    return found
