"""What a training step costs before it is run, and which form of the continual update the kernels take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from . import _C, ops
from .network import Network, whole_number
from .rules import CEP, EP

PARTS = ("free phase", "nudged phases", "contrast", "input update", "inner updates")


@dataclass(frozen=True)
class Cost:
    flops: float  # a multiplication and an addition are two
    bytes: float  # of weights, read and written; states are small beside them


@dataclass(frozen=True)
class Plan:
    """What one batch costs by the operation counts of ``csrc/plan.h``; ``print`` it for a table.

    ``costs`` holds those of the parts of the step: "free phase", "nudged phases", for EP "contrast", for continual EP
    "input update" and "inner updates" (of connection 0 and of those between layers). ``forms`` says by which form the
    kernels compute the two updates, "literal" or "low_rank"; empty for EP. ``other_forms`` holds what the forms not
    taken would cost, where they are exact; empty for EP. ``expected_ms`` follows from the measured speed of a free
    step; None where the fused kernels cannot run the network.
    """

    costs: dict[str, Cost]
    forms: dict[str, str]
    other_forms: dict[str, Cost]
    expected_ms: float | None

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.costs.values())

    @property
    def bytes(self) -> float:
        return sum(cost.bytes for cost in self.costs.values())

    def __str__(self) -> str:
        rows = [(f"{part}{self._form_of(part)}", cost) for part, cost in self.costs.items()]
        rows.append(("all", Cost(self.flops, self.bytes)))
        rows += [(f"not taken: {part}", cost) for part, cost in self.other_forms.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {c.flops / 1e6:10.2f} MFLOP  {c.bytes / 1e6:10.2f} MB" for name, c in rows]
        if self.expected_ms is not None:
            lines.append(f"{'expected':<{width}}  {self.expected_ms:10.2f} ms")
        return "\n".join(lines)

    def _form_of(self, part: str) -> str:
        form = self.forms.get(part.split()[0])
        return f", {form}" if form else ""


def plan(net: Network, rule: EP | CEP, batch: int) -> Plan:
    """What a training step of ``rule`` on ``net`` costs for ``batch`` samples; trains nothing.

    The kernels take, for continual EP, the form of each update that needs fewer operations (2005.04168's update moves
    the weights at every step; the exact low-rank form keeps them constant), or the one that ``rule.update`` names.
    Runs a few free steps to measure their speed, with as many threads as torch has.

    Raises:
        TypeError: ``rule`` is no EP or CEP.
        ValueError: ``rule`` is another network's, or ``batch`` is no int >= 1.
    """
    if not isinstance(rule, (EP, CEP)):
        raise TypeError(f"rule must be an EP or CEP, got {type(rule).__name__}")
    if rule.net is not net:
        raise ValueError("rule must be one on net, got one on another network")
    if net.circuit().convolutions:
        raise ValueError("plan speaks of the fused kernels, and there are none for networks with convolutions yet")
    batch = whole_number("batch", batch, 1)
    continual = isinstance(rule, CEP)
    parts, chosen = _C.step_costs(
        widths=[net.weights[0].shape[1], *(w.shape[0] for w in net.weights)],
        readout=net.readout is not None,
        free_feedback=net.free_feedback is not None,
        asynchronous=net.dynamics.schedule == "asynchronous",
        symmetric=rule.nudging == "symmetric",
        accumulate=isinstance(rule, EP) and rule.accumulate,
        shared_update=rule.shared_update,
        weight_decay=isinstance(rule, CEP) and rule.weight_decay != 0,
        literal_input=net.weights[0].device.type == "cpu",
        batch=batch,
        free_steps=rule.free_steps,
        nudged_steps=rule.nudged_steps,
        number_bytes=net.weights[0].element_size(),
        continual=continual,
        update=rule.update if isinstance(rule, CEP) else "auto",
    )
    taken = {"input update": chosen.get("input"), "inner updates": chosen.get("inner")}
    costs = {}
    for part in PARTS:
        name = f"{part}, {taken[part]}" if taken.get(part) else part
        if name in parts:
            costs[part] = Cost(*parts.pop(name))
    return Plan(
        costs, chosen, {name: Cost(*cost) for name, cost in parts.items()}, _expected_ms(net, rule, batch, costs)
    )


@torch.no_grad()
def _expected_ms(net: Network, rule: EP | CEP, batch: int, costs: dict[str, Cost]) -> float | None:
    """The measured time of the free steps, and of everything else as much time as its operations take there."""
    circuit = net.circuit()
    x = torch.full((batch, net.weights[0].shape[1]), 0.5, dtype=net.weights[0].dtype, device=net.weights[0].device)
    if ops.obstacle(circuit, x) is not None:
        return None

    def milliseconds(steps: int) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ops.relax(circuit, x, steps).steps.cpu()  # waits for a GPU
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    few, many = milliseconds(0), milliseconds(8)
    step = max(0.0, many - few) / 8
    phases = (3 if isinstance(rule, CEP) else 2) if rule.nudging == "symmetric" else 1
    steps = rule.free_steps + phases * rule.nudged_steps
    updates = sum(costs[part].flops for part in PARTS[2:] if part in costs)
    free_steps_flops = costs["free phase"].flops + costs["nudged phases"].flops
    return few + steps * step * (1 + updates / max(1.0, free_steps_flops))
