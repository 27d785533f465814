"""The fused kernels for convolutions against the float64 reference, and what the ops promise for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from convolution_variants import CHAINS, build_chain, build_ties, chain_variants, name_of_chain
from kernel_runs import all_runs
from op_arguments import arguments_of_chain
from problems import relative_error
from variants import copy_of

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = chain_variants()


def check(variant: dict[str, Any], dtype: torch.dtype) -> None:
    # Whether rounding moves a maximum to another place, or a unit over a kink, is chance: in float32, of several draws.
    draws = [build_chain(variant, dtype, seed) for seed in range(5 if dtype == torch.float32 else 1)]
    assert_agreement(partial(all_runs, variant), draws, median)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of_chain)
def test_agrees_with_the_reference(variant: dict[str, Any], dtype: torch.dtype) -> None:
    check(variant, dtype)


@pytest.mark.parametrize("chain", range(len(CHAINS)))
@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_every_chain(chain: int, feedback: str) -> None:
    check({**VARIANTS[0], "chain": chain, "feedback": feedback}, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS[::5], ids=name_of_chain)
def test_instruction_sets(kernels: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    assert ops.build_info()["cpu_kernels"] == kernels
    check(variant, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chain", range(5))
@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_bitwise_the_same_for_every_number_of_threads(
    threads: Callable[[int], None], schedule: str, feedback: str, chain: int, dtype: torch.dtype
) -> None:
    variant = {**VARIANTS[0], "chain": chain, "feedback": feedback, "schedule": schedule}
    runs = []
    for count in (1, 1, 2, 3):
        threads(count)
        problem, nudge = build_chain(variant, dtype)
        runs.append(all_runs(variant, ops, problem.circuit, problem.x, nudge))
    for run in runs[1:]:
        for kind, tensors in runs[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, run[kind], strict=True)), kind


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_a_tolerance_ends_phases_where_the_reference_does(
    threads: Callable[[int], None], schedule: str, feedback: str, count: int
) -> None:
    threads(count)
    problem, nudge = build_chain({**VARIANTS[0], "chain": 1, "feedback": feedback, "schedule": schedule}, torch.float64)
    circuit, x, _ = problem
    phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "symmetric": True}
    for tolerance in (1e-2, 1e-5):
        for module in (ops, reference):
            ep = module.ep_step(circuit, x, nudge, **phases, tolerance=tolerance)
            lr = [1e-3] * len(circuit.weights)
            cep_ran = module.cep_step(copy_of(circuit), x, nudge, **phases, lr=lr, tolerance=tolerance)
            found = ([ep.steps, cep_ran.steps], [*ep.gradients.parameters(), *cep_ran.circuit.parameters()])
            if module is ops:
                steps, tensors = found
        assert all(map(torch.equal, steps, found[0]))
        assert all(4 <= s < 60 for s in steps[0].tolist())
        assert max(map(relative_error, tensors, found[1])) < 1e-9


def test_ties_and_saturated_units() -> None:
    """Equal inputs make equal maxima, of which the first counts."""
    assert_agreement(partial(all_runs, VARIANTS[0]), [build_ties(VARIANTS[0])])


# --- What the ops promise besides


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["relax", "ep_step", "cep_step"])
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    given, settings = arguments_of_chain(op, dtype)
    torch.library.opcheck(getattr(torch.ops.ceprop_cuda, op).default, given, settings)


def of_weights(index: int, shape: tuple[int, ...]) -> Callable[[list[Any]], None]:
    def change(given: list[Any]) -> None:
        given[1] = [torch.rand(shape) if i == index else w for i, w in enumerate(given[1])]

    return change


def nothing(_given: list[Any]) -> None:
    pass


@pytest.mark.parametrize("op", ["relax", "ep_step", "cep_step"])
@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (nothing, {"strides": [1, 1]}, "strides must hold 4 numbers, two per letter of pools, got 2"),
        (nothing, {"strides": [1, 1, 0, 1]}, r"strides\[2\] must lie in 1 .. 32767, got 0"),
        (nothing, {"paddings": [1, 1, 0, -1]}, r"paddings\[3\] must lie in 0 .. 32767, got -1"),
        (nothing, {"windows": [300, 300, 2, 2]}, "windows must have at most 65535 places, got 300 x 300"),
        (nothing, {"pools": "mx"}, "a letter of pools must be one of 'm', 'a', 'i', 'd', got 'x'"),
        (nothing, {"pools": "mmiii"}, "pools must hold at most 4 letters, one per connection but a readout's, got 5"),
        (of_weights(0, (5, 3, 3, 2)), {}, r"weights\[0\] must be \(5, 2, 3, 2\), got \(5, 3, 3, 2\)"),
        (of_weights(0, (5, 6)), {}, r"weights\[0\] must be \(channels, 2, kernel height, kernel width\)"),
        (of_weights(0, (5, 2, 19, 2)), {}, r"weights\[0\] and windows\[0 .. 1\] must leave something of a map"),
        (of_weights(1, (18, 5, 2, 2)), {}, r"feedback_weights\[0\] must be \(18, 5, 2, 2\), got \(18, 5, 2, 3\)"),
        (of_weights(2, (7, 35)), {}, r"weights\[2\] must be \(7, 72\), got \(7, 35\)"),
        (lambda given: given.__setitem__(0, torch.rand(3, 286)), {}, r"x must be \(B, channels, height, width\)"),
    ],
)
def test_refused(op: str, change: Callable[[list[Any]], None], settings: dict[str, Any], message: str) -> None:
    given, others = arguments_of_chain(op)
    change(given)
    flat = [t for a in given for t in (a if isinstance(a, list) else [a])]
    before = [t.clone() for t in flat]
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.ceprop_cuda, op)(*given, **others | settings)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(flat, before, strict=True))


def test_states_must_have_the_shapes_of_the_maps() -> None:
    given, settings = arguments_of_chain("relax")
    given[4] = [s.flatten(1) for s in given[4]]
    with pytest.raises(ValueError, match=r"states\[0\] must be \(3, 5, 6, 6\), got \(3, 180\)"):
        torch.ops.ceprop_cuda.relax(*given, **settings)


def test_any_strides() -> None:
    given, settings = arguments_of_chain("ep_step")
    expected = torch.ops.ceprop_cuda.ep_step(*given, **settings)

    def strided(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t, t.new_full(t.shape, float("nan"))], -1)[..., 0]

    views = [strided(a) if isinstance(a, torch.Tensor) else [strided(t) for t in a] for a in given]
    views[0] = given[0].contiguous(memory_format=torch.channels_last)
    got = torch.ops.ceprop_cuda.ep_step(*views, **settings)
    for a, b in zip(expected, got, strict=True):
        assert all(map(torch.equal, a, b))


def test_compiles_without_graph_breaks() -> None:
    net = cep.convnet((1, 8, 8), (4,), 3, 1, "m", (5,), free_steps=3)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(torch.compile(net, fullgraph=True)(x), net(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_not_finite_inputs_stay_visible(kernels: str, pool: str, bad: float) -> None:
    problem, _ = build_chain({**VARIANTS[0], "chain": 2, "activation": "tanh"}, torch.float32)
    circuit, x, _ = problem
    made = tuple(replace(c, pool=pool) for c in circuit.structure.convolutions)
    shapes = reference.relax(replace(circuit, structure=chain(1, made), weights=circuit.weights[:1]), x, 0).states
    weights = [circuit.weights[0], torch.rand(6, shapes[0][0].numel()) / 100, circuit.weights[2]]
    circuit = Circuit(weights, circuit.biases, None, circuit.dynamics, chain(len(weights), made))
    x[1, 0, 2, 3] = bad
    got, wanted = (module.relax(circuit, x, 3).states for module in (ops, reference))
    for a, b in zip(got, wanted, strict=True):
        assert bool(a[[0, 2, 3]].isfinite().all())
        assert torch.equal(a[1].isnan().any(), b[1].isnan().any())
