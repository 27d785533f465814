"""What a training step costs before it is run, and which form of the continual update the kernels take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .. import _C, ops
from ..arguments.checks import whole_number
from ..networks import Network
from .nudged import NudgedRule, Work

PARTS = ("free phase", "nudged phases", "contrast", "input update", "inner updates")


@dataclass(frozen=True)
class Cost:
    """Operations and traffic of one batch."""

    flops: float  # a multiplication and an addition are two
    bytes: float  # of weights, read and written; states are small beside them


@dataclass(frozen=True)
class Plan:
    """What one batch costs by the operation counts of ``csrc/model/costs.h``, or with convolutions of
    :func:`costs_of_convolutions`; ``print`` it for a table.

    ``costs`` holds those of the parts of the step: "free phase", "nudged phases", for EP "contrast", for continual EP
    "input update" and "inner updates" (of connection 0 and of those between layers). ``forms`` says by which form the
    kernels compute the two updates, called "input" and "inner": "literal" or "low_rank"; empty for EP. ``other_forms``
    holds what the forms not taken would cost, where they are exact; empty for EP. ``expected_ms`` follows from the
    measured speed of a free step; None where the fused kernels cannot run the network.
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


def plan(net: Network, rule: NudgedRule, batch: int) -> Plan:
    """What a training step of ``rule`` on ``net`` costs for ``batch`` samples; trains nothing.

    The kernels of a CPU take, for continual EP, the form of each update that needs fewer operations (2005.04168's
    update moves the weights at every step; the exact low-rank form keeps them constant), or the one that
    ``rule.update`` names. Runs a few free steps to measure their speed, with as many threads as torch has; waits for a
    GPU.

    Raises:
        TypeError: ``rule`` has no nudged phase, as EP, CEP and rules of your own that derive from NudgedRule have.
        ValueError: ``rule`` is another network's, ``net`` is a graph, or ``batch`` is no int >= 1.
    """
    if not isinstance(rule, NudgedRule):
        raise TypeError(f"rule must be an EP or CEP, got {type(rule).__name__}")
    if rule.net is not net:
        raise ValueError("rule must be one on net, got one on another network")
    batch = whole_number("batch", batch, 1)
    work = rule.work()
    if not net.circuit().structure.is_chain:
        raise ValueError("plan counts the operations of chains of layers, this network is a graph")
    if net.circuit().structure.convolutions:
        costs = costs_of_convolutions(net, work, batch)
        forms = {"input": "literal", "inner": "literal"} if work.continual else {}
        return Plan(costs, forms, {}, _expected_ms(net, work, batch, costs))
    on_cpu = net.weights[0].device.type == "cpu"
    if not on_cpu:
        work = work._replace(update="literal")  # between layers; the input's always telescopes there
    parts, chosen = _C.step_costs(
        widths=[net.weights[0].shape[1], *(w.shape[0] for w in net.weights)],
        readout=net.readout is not None,
        free_feedback=net.free_feedback is not None,
        asynchronous=net.dynamics.schedule == "asynchronous",
        literal_input=on_cpu,
        batch=batch,
        number_bytes=net.weights[0].element_size(),
        **work._asdict(),
    )
    taken = {"input update": chosen.get("input"), "inner updates": chosen.get("inner")}
    costs = {}
    for part in PARTS:
        name = f"{part}, {taken[part]}" if taken.get(part) else part
        if name in parts:
            costs[part] = Cost(*parts.pop(name))
    return Plan(
        costs, chosen, {name: Cost(*cost) for name, cost in parts.items()}, _expected_ms(net, work, batch, costs)
    )


def costs_of_convolutions(net: Network, work: Work, batch: int) -> dict[str, Cost]:
    """What the CPU kernels for convolutions multiply and add in the parts of a step, zeros counted.

    Of a connection with w weights at p positions of the kernel, which a pooling leaves q places of, for each sample:
    2 w p on the way up; 2 w q back from a maximum, else 2 w p; again 2 w p where a step must pick maxima anew, by free
    feedback or above a layer that has moved within the step; 2 w p a term of the contrast, and 2 w p to pick the maxima
    of each state that no step has picked. The input's drive is taken once, in continual EP after every move as well.
    """
    circuit = net.circuit()
    free = circuit.free_feedback is not None
    up, step, contrast, weights = [], [], [], [float(w.numel() * w.element_size()) for w in circuit.weights]
    for connection, (w, positions, places, picks) in enumerate(_uses(net)):
        through = 2.0 * batch * w * positions
        back = 2.0 * batch * w * places if picks else through
        moved_below = net.dynamics.schedule == "asynchronous" and connection % 2 == 1
        again = through if picks and (free or moved_below) else 0.0
        terms = 2 if not (free and picks) else 4 if work.shared_update else 3
        states = 0 if not picks else terms if free else 1 if work.continual else 2
        up.append(through)
        step.append(through + back + again)
        contrast.append(through * (terms + states))

    def inner(numbers: list[float]) -> float:
        return sum(numbers[1 : circuit.layers])

    def steps(count: int, readout: bool) -> Cost:
        cost = Cost(count * inner(step), count * 2 * inner(weights))
        return Cost(cost.flops + count * 2 * up[-1], cost.bytes + count * 2 * weights[-1]) if readout else cost

    phases = 2 if work.symmetric else 1
    moves = phases * work.nudged_steps
    way_back = work.nudged_steps if work.continual and work.symmetric else 0
    first = steps(work.free_steps, readout=False)
    costs = {
        "free phase": Cost(up[0] + first.flops, weights[0] + first.bytes),
        "nudged phases": steps(moves + way_back, readout=circuit.structure.has_readout),
    }
    if work.continual:
        costs["input update"] = Cost(moves * 2 * up[0], moves * 3 * weights[0])
        costs["inner updates"] = Cost(moves * inner(contrast), moves * 4 * inner(weights))
    else:
        times = moves if work.accumulate and free and not work.shared_update else 1
        costs["contrast"] = Cost(
            times * (up[0] + inner(contrast)), times * (weights[0] + (2 if free else 1) * inner(weights))
        )
    return costs


def _uses(net: Network) -> Iterator[tuple[int, int, int, bool]]:
    """Of each connection: weights, positions of its kernel, places that its pooling leaves, whether it picks maxima."""
    circuit = net.circuit()
    size: tuple[int, ...] = net.input_shape[1:]
    for w, (_, _, made) in zip(circuit.weights, circuit.structure.connections, strict=True):
        if made is None:
            yield w.numel(), 1, 1, False
            continue
        positions = math.prod(replace(made, pool="none").output_size(w, size))
        size = made.output_size(w, size)
        yield w.numel(), positions, math.prod(size), made.pool == "max"


@torch.no_grad()
def _expected_ms(net: Network, work: Work, batch: int, costs: dict[str, Cost]) -> float | None:
    """The measured time of the free steps, and of everything else as much time as its operations take there."""
    circuit = net.circuit()
    x = torch.full((batch, *net.input_shape), 0.5, dtype=net.weights[0].dtype, device=net.weights[0].device)
    x = net.check_input(circuit, x)
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
    phases = (3 if work.continual else 2) if work.symmetric else 1
    steps = work.free_steps + phases * work.nudged_steps
    updates = sum(costs[part].flops for part in PARTS[2:] if part in costs)
    free_steps_flops = costs["free phase"].flops + costs["nudged phases"].flops
    return few + steps * step * (1 + updates / max(1.0, free_steps_flops))
