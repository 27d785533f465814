"""One call of every op on a device under the emulation."""

from __future__ import annotations

from itertools import chain
from typing import Any

from agreement import results_of
from emulated_device import EmulatedDevice
from kernel_runs import rates
from problems import Problem
from torch import Tensor
from variants import copy_of

from ceprop_cuda.spec.dynamics import Nudge

READOUT = {"loss": "cross_entropy", "at": "drive", "readout": True}


def call_every_op_on(device: EmulatedDevice, problem: Problem, nudge: Nudge, of_calls: dict[str, Any]) -> list[Tensor]:
    """What the calls give. ``of_calls``: their settings; "accumulate" is EP's, "gate" continual EP's."""
    settings = {"free_steps": 2, "nudged_steps": 2, **of_calls}
    accumulate, gate = settings.pop("accumulate", False), settings.pop("gate", None)
    circuit, x, _ = problem
    relaxed = device.relax(circuit, x, settings["free_steps"], None, nudge, settings.get("tolerance"))
    ep = device.ep_step(circuit, x, nudge, accumulate=accumulate, **settings)
    cep = device.cep_step(copy_of(circuit), x, nudge, lr=rates(circuit), gate=gate, **settings)
    learned = [*results_of(ep, circuit).values(), *results_of(cep, circuit).values()]
    return [*relaxed.states, *chain.from_iterable(learned)]
