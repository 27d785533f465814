"""How far the fused kernels are from the reference in float64, against the tolerance table."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from problems import Problem
from torch import Tensor
from variants import CHANGE_OVER_STATE, CONTRAST_OF_MAPS, TOLERANCES

from ceprop_cuda import ops
from ceprop_cuda.spec import connections, reference
from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import Circuit, Nudge
from ceprop_cuda.spec.reference import CEPResult, EPResult

# Lists by name; its last word is what they hold: states, gradients, parameters, or changes of parameters.
Results = dict[str, list[Tensor]]
Run = Callable[[Any, Circuit, Tensor, Nudge], Results]  # with the module ops or reference, or what stands for one


def results_of(ran: EPResult | CEPResult, before: Circuit) -> Results:
    """What a step of EP on the circuit ``before``, or of continual EP on a copy of it, found and left."""
    states = [ran.output, *ran.free_states, *(s for phase in ran.nudged_states for s in phase)]
    if isinstance(ran, EPResult):
        return {"states": states, "gradients": ran.gradients.parameters()}
    after = ran.circuit.parameters()
    results = {"states": states, "parameters": after}
    if states[0].dtype == torch.float64:  # in float32 the parameters' rounding is too large a part of them
        results["changes"] = [p - q for p, q in zip(after, before.parameters(), strict=True)]
    return results


def in_float64(circuit: Circuit) -> Circuit:
    def doubles(parameters: list) -> list:
        return [None if p is None else p.double() for p in parameters]

    free = None if circuit.free_feedback is None else doubles(circuit.free_feedback)
    return replace(circuit, weights=doubles(circuit.weights), biases=doubles(circuit.biases), free_feedback=free)


def largest(tensors: list[Tensor]) -> float:
    return max(t.double().norm().item() for t in tensors)


def unpooled_at_the_first(v: Tensor, z: Tensor, made: Convolution, unpooled: Any = connections._unpooled) -> Tensor:
    """Takes what only rounding tells apart for equal: a library's convolution may round equal patches by their place,
    differently on each processor, and then not the first of equal maxima is the largest."""
    return unpooled(v, z.round(decimals=11), made)


_found: OrderedDict[str, tuple[int, Results]] = OrderedDict()  # with their bytes, the last asked for at the end
MOST_KEPT = 256 << 20  # bytes


def name_of(what: object, *tensors: Tensor | None) -> str:
    """The same for the same words and numbers."""
    key = hashlib.sha256(repr(what).encode())
    for tensor in tensors:
        key.update(b"" if tensor is None else repr((tensor.dtype, tensor.shape)).encode() + tensor.numpy().tobytes())
    return key.hexdigest()


def tensors_of(circuit: Circuit) -> Iterable[Tensor | None]:
    return (*circuit.weights, *circuit.biases, *(circuit.free_feedback or ()))


@contextmanager
def free_phases_once() -> Iterator[None]:
    """The reference runs a free phase from rest once, however many calls begin with it, and on one thread: for its
    small tensors two take as long, and longer where anything else runs."""
    found: dict[str, reference.Relaxed] = {}
    relax, threads = reference.relax, torch.get_num_threads()

    def remembered(circuit: Circuit, x: Tensor, steps: int, *others: Any, **more: Any) -> reference.Relaxed:
        if others or more.keys() - {"tolerance"}:  # from given states, or nudged
            return relax(circuit, x, steps, *others, **more)
        name = name_of((circuit.dynamics, circuit.structure, steps, more), x, *tensors_of(circuit))
        if name not in found:
            found[name] = relax(circuit, x, steps, **more)
        return reference.Relaxed([s.clone() for s in found[name].states], found[name].steps.clone())

    torch.set_num_threads(1)
    try:
        with mock.patch.object(reference, "relax", remembered):
            yield
    finally:
        torch.set_num_threads(threads)


def by_reference(run: Run, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """What ``run`` gives, or has given before: other instruction sets and engines are compared with the same."""
    if not isinstance(run, partial):  # a test's own function, which may do more than return results
        return run(reference, circuit, x, nudge)
    named = (run.func, run.args, run.keywords, circuit.dynamics, circuit.structure)
    how = (*named, nudge.beta, nudge.at, nudge.loss, connections._unpooled)
    name = name_of(how, x, nudge.target, *tensors_of(circuit))
    if name not in _found:
        with free_phases_once():
            results = run(reference, circuit, x, nudge)
        size = sum(tensor.numel() * tensor.itemsize for tensors in results.values() for tensor in tensors)
        while _found and size + sum(kept for kept, _ in _found.values()) > MOST_KEPT:
            _found.popitem(last=False)
        _found[name] = (size, results)
    _found.move_to_end(name)
    return _found[name][1]


def errors(run: Run, problem: Problem, nudge: Nudge, module: Any = ops) -> dict[str, tuple[float, float, float]]:
    """For every list of results: the largest error of ``module`` against the reference in float64, and what the
    tolerance table grants it, relative to the error of the reference in the problem's dtype and absolutely."""
    circuit, x, _ = problem
    with mock.patch.object(connections, "_unpooled", unpooled_at_the_first):
        exact = by_reference(run, in_float64(circuit), x.double(), replace(nudge, target=nudge.target.double()))
    fused = run(module, circuit, x, nudge)
    plain = by_reference(run, circuit, x, nudge) if x.dtype == torch.float32 else exact
    granted = TOLERANCES[x.dtype]
    floors = {"states": 1, "parameters": 1, "gradients": 1 / abs(nudge.beta), "changes": CHANGE_OVER_STATE}
    if any(c.convolution for c in circuit.connections):
        floors["gradients"] *= CONTRAST_OF_MAPS
    found = {}
    for kind in fused:
        wanted = exact[kind]
        assert [(f.dtype, f.shape) for f in fused[kind]] == [(x.dtype, w.shape) for w in wanted]
        # What nearly vanishes (the contrast far below a barely nudged output) is measured by its fellows' size: its
        # error comes from the rounding of states, which does not vanish with it.
        sizes = [max(w.norm().item(), 0.1 * largest(wanted)) or 1.0 for w in wanted]
        of_fused, of_plain = (
            max((a.double() - w).norm().item() / size for a, w, size in zip(got[kind], wanted, sizes, strict=True))
            for got in (fused, plain)
        )
        found[kind] = (of_fused, granted["factor"] * of_plain, granted["floor"] * floors[kind.split()[-1]])
    return found


def assert_agreement(
    run: Run,
    draws: Iterable[tuple[Problem, Nudge]],
    summary: Callable[[Iterable[float]], float] = max,
    module: Any = ops,
) -> None:
    """The error of ``module`` is within what the tolerance table grants: the worst in these draws, or another
    ``summary``."""
    found = [errors(run, problem, nudge, module) for problem, nudge in draws]
    for kind in found[0]:
        fused, relative, floor = (summary(column) for column in zip(*(draw[kind] for draw in found), strict=True))
        assert fused <= relative + floor, kind
