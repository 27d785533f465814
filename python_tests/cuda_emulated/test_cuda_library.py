"""PyTorch's operators with our kernels around them, as a GPU runs them, without one: the same sequence of calls, with
the operators for the CPU and the unchanged kernels under cuda_emulation, against the reference. What only a GPU can
show, the CUDA graph around it, is in test_cuda_graphs.py."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from convolution_variants import build_ties, name_of_chain
from emulated_chains import CALLS, CHAINS, VARIANTS, build, call_every_op
from emulated_device import EmulatedDevice, Refused
from emulated_library import Served, library_program
from golden_steps import GOLDEN_CHAINS, assert_chain_is_golden
from kernel_runs import all_runs, gated_runs, rates
from large_logits import assert_softmax_is_right
from not_finite_numbers import assert_not_finite_inputs_stay_visible, assert_ops_store_nothing
from problems import relative_error
from project import EMULATED_PROGRAMS, ROOT
from settling import assert_tolerances_are_exact
from torch import Tensor
from variants import TOLERANCES, copy_of, name_of
from variants import VARIANTS as DENSE
from variants import build as dense_problem

from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import Circuit, Nudge
from ceprop_cuda.spec.reference import EPResult
from ceprop_cuda.validate import dense_target

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

KERNELS = ROOT / "csrc" / "cuda" / "aten" / "kernels.cuh"

Device = Callable[..., EmulatedDevice]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Makes a device that runs one of the builds."""
    served: dict[str, Served] = {}
    folder = tmp_path_factory.mktemp("cuda_library")

    def make(name: str = "plain", precision: str = "exact") -> Served:
        return served.setdefault(f"{name} {precision}", Served(library_program(name), folder, precision=precision))

    yield make
    for one in served.values():
        if one.process is not None:
            one.process.communicate()


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """For the reference, whose tensors are small."""
    threads(1)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda i: name_of_chain(VARIANTS[i]))
def test_agreement(device: Device, number: int) -> None:
    variant = VARIANTS[number]
    assert_agreement(partial(all_runs, variant), [build(variant, torch.float64)], module=device())


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda i: name_of_chain(VARIANTS[i]))
def test_agreement_in_float32(device: Device, number: int) -> None:
    variant = VARIANTS[number]
    # Whether rounding moves a maximum to another place, or a unit over a kink, is chance: of several draws.
    draws = [build(variant, torch.float32, seed) for seed in range(3)]
    assert_agreement(partial(all_runs, variant), draws, median, device())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("number", range(0, len(DENSE), 3), ids=lambda i: name_of(DENSE[i]))
def test_agreement_on_dense_layers(device: Device, number: int, dtype: torch.dtype) -> None:
    """In tf32 their products are other operators, which round nothing on a CPU."""
    variant = DENSE[number]
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 1000  # see test_kernels.check
    draws = [dense_problem(variant, dtype, seed) for seed in range(3 if few else 1)]
    for precision in ("exact", "tf32"):
        assert_agreement(partial(all_runs, variant), draws, module=device(precision=precision))


@pytest.mark.parametrize("number", [i for i, variant in enumerate(VARIANTS) if variant["feedback"] == "free"])
def test_gates(device: Device, number: int) -> None:
    assert_agreement(partial(gated_runs), [build(VARIANTS[number], torch.float64)], module=device())


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_every_chain(device: Device, number: int, feedback: str) -> None:
    problem, nudge = build({**VARIANTS[0], "chain": number, "feedback": feedback}, torch.float64)
    settings: dict[str, Any] = {"free_steps": 6, "nudged_steps": 3}
    for step in ("ep_step", "cep_step"):
        learning = {"lr": rates(problem.circuit)} if step == "cep_step" else {}
        found, wanted = (
            getattr(module, step)(copy_of(problem.circuit), problem.x, nudge, **settings, **learning)
            for module in (device(), reference)
        )
        of = [r.gradients if step == "ep_step" else r.circuit for r in (found, wanted)]
        for a, b in zip(of[0].parameters(), of[1].parameters(), strict=True):
            assert relative_error(a, b) < 1e-9


@pytest.mark.parametrize("name", GOLDEN_CHAINS)
def test_golden_cases(device: Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ep_step(circuit: Circuit, x: Tensor, nudge: Nudge, *, precision: str, engine: str, **phases: Any) -> EPResult:
        """The op gives PyTorch's operators a target of floats."""
        dense = replace(nudge, target=dense_target(nudge.target, x, circuit.classes))
        return device().ep_step(circuit, x, dense, **phases)

    monkeypatch.setattr(ops, "ep_step", ep_step)
    assert_chain_is_golden(name, "fused")


def test_ties_and_saturated_units(device: Device) -> None:
    """Equal inputs make equal maxima, of which the first counts."""
    assert_agreement(partial(all_runs, VARIANTS[0]), [build_ties(VARIANTS[0], CHAINS)], module=device())


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_phases_end_where_those_of_the_reference_do(device: Device, schedule: str, feedback: str) -> None:
    problem, nudge = build({**VARIANTS[0], "feedback": feedback, "schedule": schedule}, torch.float64)
    circuit, x, _ = problem
    phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "symmetric": True, "tolerance": 1e-3}
    found, wanted = (module.ep_step(circuit, x, nudge, **phases) for module in (device(), reference))
    assert torch.equal(found.steps, wanted.steps)
    assert all(4 <= s < 60 for s in found.steps.tolist())
    moved, wanted_moved = (
        module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit)) for module in (device(), reference)
    )
    assert torch.equal(moved.steps, wanted_moved.steps)
    pairs = zip(moved.circuit.parameters(), wanted_moved.circuit.parameters(), strict=True)
    assert max(relative_error(*pair) for pair in pairs) < 1e-9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_not_finite_inputs_stay_visible(device: Device, pool: str, bad: float) -> None:
    assert_not_finite_inputs_stay_visible(device(), pool, bad)


def test_states_that_are_not_finite_never_settle(device: Device) -> None:
    problem, _ = build({**VARIANTS[0], "activation": "linear"}, torch.float64)
    circuit, x, _ = problem
    assert device().relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    x[-1, -1, 2, 2] = float("nan")
    assert device().relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tolerances_are_exact(device: Device, dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(device(), dtype, (Convolution(),))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("readout", [False, True])
def test_softmax_of_large_logits(device: Device, readout: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(device(), dtype, readout, convolution=True)


def test_relaxation_goes_on_from_given_states(device: Device) -> None:
    problem, nudge = build(VARIANTS[0], torch.float64)
    circuit, x, _ = problem
    first = device().relax(circuit, x, 3, None, nudge).states
    again = device().relax(circuit, x, 2, first, nudge).states
    assert all(map(torch.equal, again, device().relax(circuit, x, 5, None, nudge).states))


@pytest.mark.parametrize("what", CALLS)
def test_every_order_of_the_threads_gives_the_same_bits(device: Device, what: str) -> None:
    """A call has another seed than the one before."""
    first, second = (call_every_op(device(), torch.float32, what) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("what", CALLS)
def test_no_race(device: Device, what: str) -> None:
    call_every_op(device("race"), torch.float32, what)


@pytest.mark.parametrize("what", CALLS)
def test_no_step_beyond_memory(device: Device, what: str) -> None:
    call_every_op(device("asan"), (torch.float32, torch.float64)[list(CALLS).index(what) % 2], what)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_no_step_beyond_memory_in_other_shapes(device: Device, number: int, dtype: torch.dtype) -> None:
    problem, nudge = build({**VARIANTS[0], "chain": number}, dtype)
    device("asan").ep_step(problem.circuit, problem.x, nudge, free_steps=1, nudged_steps=1)
    lr = rates(problem.circuit)
    device("asan").cep_step(problem.circuit, problem.x, nudge, free_steps=1, nudged_steps=2, lr=lr)


def test_a_race_is_reported(tmp_path: Path) -> None:
    """Where threads note without care that units move."""
    for part in ("csrc", "python_tests/support/cuda_kernels"):
        shutil.copytree(ROOT / part, tmp_path / part)
    faulty = tmp_path / KERNELS.relative_to(ROOT)
    text = faulty.read_text()
    assert text.count("atomicExch(given.moves, 1);") == 1
    faulty.write_text(text.replace("atomicExch(given.moves, 1);", "*given.moves = 1;"))
    device = Served(library_program("race", tmp_path / EMULATED_PROGRAMS.relative_to(ROOT), tmp_path), tmp_path)
    with pytest.raises(Refused, match="data race on "):
        call_every_op(device, torch.float32, "tolerance")


def test_kernels_wait_for_nobody() -> None:
    """So that there are no barriers to leave out."""
    assert not re.search(r"sync|shared", KERNELS.read_text())


def test_a_step_that_is_not_finite_stores_nothing(device: Device) -> None:
    assert_ops_store_nothing(device(), "convolutions")
