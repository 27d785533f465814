"""The gate of a vector field's contrast in the fused kernels, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, results_of
from golden_steps import assert_step_is_golden
from kernel_runs import rates
from op_arguments import arguments_of_chain, keywords, positional, torch_ops
from project import GOLDEN
from torch import Tensor
from variants import SHAPES, VARIANTS, build, copy_of, name_of

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec.dynamics import Circuit, Nudge
from ceprop_cuda.tracing import flat

GATES = ["unit", "connection"]
FIELDS = [variant for variant in VARIANTS if variant["feedback"] == "free"]


def gated_runs(gate: str | None, module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    """Every kind of learning step, under one name each."""
    results = {}
    for symmetric in (False, True):
        phases: dict[str, Any] = {"free_steps": 8, "nudged_steps": 5, "symmetric": symmetric, "gate": gate}
        for extra in (False, True):
            ep = module.ep_step(circuit, x, nudge, **phases, accumulate=extra)
            learning = {"lr": rates(circuit), "weight_decay": 0.1 * extra}
            continual = module.cep_step(copy_of(circuit), x, nudge, **phases, **learning)
            for name, ran in (("ep", ep), ("cep", continual)):
                found = results_of(ran, circuit)
                results |= {f"{name} {symmetric} {extra} {key}": value for key, value in found.items()}
    return results


def check(gate: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 1000  # as in test_kernels.py
    assert_agreement(partial(gated_runs, gate), [build(variant, dtype, seed) for seed in range(5 if few else 1)])


def test_the_variants_have_every_kind_of_step() -> None:
    """Both dynamics, schedules and nudging points, with a readout and without biases."""
    for key in ("dynamics", "schedule", "at", "bias"):
        assert len({variant[key] for variant in FIELDS}) == 2
    assert any(variant.get("readout") for variant in FIELDS)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("cvf_gate_*.npz")))
def test_golden_step(kernels: str, name: str) -> None:
    assert_step_is_golden(name, ops)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", FIELDS, ids=name_of)
@pytest.mark.parametrize("gate", GATES)
def test_agreement(gate: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    check(gate, variant, dtype)


@pytest.mark.parametrize("variant", FIELDS[::5], ids=name_of)
@pytest.mark.parametrize("gate", GATES)
def test_instruction_sets(kernels: str, gate: str, variant: dict[str, Any]) -> None:
    check(gate, variant, torch.float64)


@pytest.mark.parametrize("activation", ["relu", "relu6", "half_hard_sigmoid", "tanh"])
@pytest.mark.parametrize("gate", GATES)
def test_activations(gate: str, activation: str) -> None:
    check(gate, {**FIELDS[0], "shape": ((20, 33, 7), 7), "activation": activation}, torch.float64)


@pytest.mark.parametrize("update", ["literal", "low_rank"])
@pytest.mark.parametrize("shape", [((12, 70, 80, 9), 3), ((5, 12, 7), 9)], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_either_form_of_the_inputs_update(gate: str, shape: tuple, update: str) -> None:
    """Where the input's drive telescopes, what enters its sums is gated already."""

    def run(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
        form = {"update": update} if module is ops else {}
        phases: dict[str, Any] = {"free_steps": 8, "nudged_steps": 6, "gate": gate, "weight_decay": 0.1}
        ran = module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit), **form)
        return results_of(ran, circuit)

    assert_agreement(run, [build({**FIELDS[0], "shape": shape}, torch.float64)])


@pytest.mark.parametrize("gate", GATES)
def test_a_tolerance_ends_phases_as_in_the_reference(gate: str) -> None:
    def run(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
        phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "tolerance": 1e-5, "gate": gate}
        ran = module.ep_step(circuit, x, nudge, **phases)
        assert 4 < ran.steps[1] < 60
        return results_of(ran, circuit)

    assert_agreement(run, [build({**FIELDS[0], "shape": ((20, 33, 7), 7)}, torch.float64)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("gate", GATES)
def test_bitwise_the_same_for_every_number_of_threads(
    threads: Callable[[int], None], gate: str, schedule: str, shape: tuple, dtype: torch.dtype
) -> None:
    variant = {**FIELDS[0], "shape": shape, "schedule": schedule}
    runs = []
    for count in (1, 2, 3, 3):
        threads(count)
        problem, nudge = build(variant, dtype)
        runs.append(gated_runs(gate, ops, problem.circuit, problem.x, nudge))
    for run in runs[1:]:
        for kind, tensors in runs[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, run[kind], strict=True)), kind


def test_the_ops_have_no_gate_unless_told() -> None:
    for op in ("ep_step", "cep_step"):
        plain, told = (
            getattr(torch_ops, op)(*positional(op), **keywords(op), **gate) for gate in ({}, {"gate": "none"})
        )
        for a, b in zip(flat(plain), flat(told), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("op", ["ep_step", "cep_step"])
def test_what_the_ops_refuse(op: str) -> None:
    def call(**changes: Any) -> None:
        getattr(torch_ops, op)(*positional(op), **{**keywords(op), **changes})

    with pytest.raises(ValueError, match="gate must be one of 'none', 'unit', 'connection', got 'units'"):
        call(gate="units")
    with pytest.raises(ValueError, match="gate must be 'none' with a shared update, got 'unit'"):
        call(gate="unit", shared_update=True)
    arguments = positional(op)
    arguments[3] = []
    with pytest.raises(ValueError, match="gate must be 'none' with tied feedback, got 'connection'"):
        getattr(torch_ops, op)(*arguments, **{**keywords(op), "feedback": "tied", "gate": "connection"})
    arguments, settings = arguments_of_chain(op)
    wanted = "engine must not be 'fused': the fused kernels have no gate for convolutions"
    with pytest.raises(ValueError, match=wanted):
        getattr(torch_ops, op)(*arguments, **settings, gate="unit", engine="fused")


@pytest.mark.parametrize("gate", GATES)
def test_the_rules_run_it_fused(gate: str) -> None:
    net = cep.mlp(6, 5, 3, feedback="free").double()
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    found = []
    for backend in ("fused", "reference"):
        net.zero_grad()
        cep.EP(net, 9, 4, 0.2, backend=backend, gate=gate).backward(x, y)
        found.append([p.grad for p in net.circuit().parameters()])
    for fused, expected in zip(*found, strict=True):
        assert torch.allclose(fused, expected, rtol=1e-9, atol=1e-12)
