"""Phases that end when the states have settled, on the reference and in the kernels, and the steps they report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, product
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import Results, assert_agreement, results_of
from problems import Problem, random_problem, relative_error
from settling import FAMILIES, LEARNING, LIMIT, SIZES, TOLERANCE, assert_tolerances_are_exact, learn, name_of
from small_network import X, Y, batch, network
from torch import Tensor
from variants import TOLERANCES, copy_of

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import Circuit, Nudge, step
from ceprop_cuda.spec.reference import STEPS_PER_CHECK, relax


def settling_time(problem: Problem, states: list[Tensor], nudge: Nudge | None, tolerance: float) -> int:
    """The first multiple of 4 steps whose last one moves no unit by more than ``tolerance``."""
    for count in range(1, LIMIT):
        before, states = states, step(problem.circuit, problem.x, states, nudge)
        moves = torch.cat([(a - b).abs().flatten() for a, b in zip(before, states, strict=True)])
        if count % 4 == 0 and bool((moves <= tolerance).all()):
            return count
    raise AssertionError("does not settle")


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
def test_a_phase_ends_at_the_first_check_at_which_nothing_moves(dynamics: str, schedule: str) -> None:
    problem = random_problem(dynamics=dynamics, schedule=schedule)
    circuit, x, y = problem
    states, seen = [torch.rand(3, n, dtype=torch.float64) for n in (6, 5, 4)], set()
    for nudge in (None, Nudge(y, 0.4)):
        for tolerance in (1e-2, 1e-4, 1e-8):
            found = relax(circuit, x, LIMIT, states, nudge, tolerance)
            steps = settling_time(problem, states, nudge, tolerance)
            assert found.steps.tolist() == [steps]
            assert steps % STEPS_PER_CHECK == 0
            assert all(map(torch.equal, found.states, relax(circuit, x, steps, states, nudge).states))
            seen.add(steps)
    assert len(seen) >= 3


def test_the_limit_holds() -> None:
    circuit, x, _ = random_problem()
    for limit in (0, 1, 3, 4, 7, 8):
        for tolerance in (None, 1e-300):  # neither stops
            found = relax(circuit, x, limit, tolerance=tolerance)
            assert found.steps.tolist() == [limit]
            assert found.steps.dtype == torch.int64
            assert all(map(torch.equal, found.states, relax(circuit, x, limit).states))
        assert relax(circuit, x, limit, tolerance=1e9).steps.tolist() == [min(limit, 4)]


def test_the_last_unit_of_the_last_sample_decides() -> None:
    """The slower, the farther it starts from its fixed point."""
    problem = random_problem(batch=4)
    circuit, x, _ = problem
    states = relax(circuit, x, LIMIT).states
    for layer, unit in ((0, 5), (2, 3)):
        shifted = [s.clone() for s in states]
        shifted[layer][3, unit] += 1
        alone = [relax(circuit, x[i : i + 1], LIMIT, [s[i : i + 1] for s in shifted], None, 1e-6) for i in range(4)]
        assert [ran.steps.item() > 4 for ran in alone] == [False, False, False, True]
        assert torch.equal(relax(circuit, x, LIMIT, shifted, None, 1e-6).steps, alone[3].steps)


def test_a_tolerance_of_zero_changes_nothing_but_the_time() -> None:
    """Exact fixed points are reached by asynchronous steps of contractions; others may end in a cycle of roundings."""
    circuit, x, y = random_problem(schedule="asynchronous")
    found = relax(circuit, x, LIMIT, tolerance=0)
    assert found.steps.item() < LIMIT
    assert all(map(torch.equal, found.states, relax(circuit, x, LIMIT).states))
    phases: dict[str, Any] = {"free_steps": LIMIT, "nudged_steps": LIMIT, "lr": [0.05, 0.02, 0.01], "symmetric": True}
    ran, whole = (reference.cep_step(circuit, x, Nudge(y, 0.4), **phases, tolerance=t) for t in (0.0, None))
    assert max(ran.steps[0].item(), ran.steps[2].item()) < LIMIT  # the phases without a nudge
    assert whole.steps.tolist() == [LIMIT] * 4
    assert all(map(torch.equal, ran.circuit.parameters(), whole.circuit.parameters()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_states_that_are_not_finite_never_settle(bad: float) -> None:
    circuit, x, _ = random_problem(activation="linear")
    circuit.biases[1][2] = bad
    assert relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


# --- Every phase of a rule


@pytest.mark.parametrize("accumulate", [False, True])
def test_every_phase_of_ep_ends_for_itself(accumulate: bool) -> None:
    circuit, x, y = random_problem(feedback="free")
    nudge, phases = Nudge(y, 0.4), {"free_steps": LIMIT, "nudged_steps": LIMIT, "tolerance": TOLERANCE}
    free = relax(circuit, x, LIMIT, tolerance=TOLERANCE)
    plus, minus = (
        relax(circuit, x, LIMIT, free.states, signed, TOLERANCE) for signed in (nudge, replace(nudge, beta=-0.4))
    )
    assert 0 < plus.steps.item() != free.steps.item() < LIMIT

    ran = reference.ep_step(circuit, x, nudge, **phases, accumulate=accumulate)
    assert ran.steps.tolist() == [free.steps.item(), plus.steps.item()]
    exactly = {"free_steps": free.steps.item(), "nudged_steps": plus.steps.item()}
    expected = reference.ep_step(circuit, x, nudge, **exactly, accumulate=accumulate)
    assert all(map(torch.equal, ran.gradients.parameters(), expected.gradients.parameters()))

    ran = reference.ep_step(circuit, x, nudge, **phases, accumulate=accumulate, symmetric=True)
    assert torch.equal(ran.steps, torch.cat([free.steps, plus.steps, minus.steps]))
    for states, wanted in zip([ran.free_states, *ran.nudged_states], (free, plus, minus), strict=True):
        assert all(map(torch.equal, states, wanted.states))


def test_every_phase_of_continual_ep_ends_for_itself() -> None:
    circuit, x, y = random_problem()
    nudge, limits = Nudge(y, 0.4), {"free_steps": LIMIT, "nudged_steps": LIMIT}
    ran = reference.cep_step(circuit, x, nudge, **limits, lr=[0.1, 0.05, 0.02], tolerance=TOLERANCE)
    free_steps, nudged_steps = ran.steps.tolist()
    assert 0 < nudged_steps != free_steps < LIMIT
    exactly = {"free_steps": free_steps, "nudged_steps": nudged_steps}
    expected = reference.cep_step(circuit, x, nudge, **exactly, lr=[0.1, 0.05, 0.02])
    assert all(map(torch.equal, ran.circuit.parameters(), expected.circuit.parameters()))

    # Rates of 0 leave relaxations of one network: free, +beta, back without a nudge, -beta.
    ran = reference.cep_step(circuit, x, nudge, **limits, lr=[0.0] * 3, tolerance=TOLERANCE, symmetric=True)
    states, ends, steps = None, [], []
    for of_phase in (None, nudge, None, replace(nudge, beta=-0.4)):
        states, count = relax(circuit, x, LIMIT, states, of_phase, TOLERANCE)
        ends.append(states)
        steps.append(count.item())
    assert len(set(steps[:3])) > 1
    assert ran.steps.tolist() == steps
    for got, wanted in zip([ran.free_states, *ran.nudged_states], (ends[0], ends[1], ends[3]), strict=True):
        assert all(map(torch.equal, got, wanted))


# --- The kernels


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_kernels_relax_for_as_many_steps_as_the_reference(family: dict[str, Any]) -> None:
    circuit, x, y = random_problem(SIZES, 23, **family)
    seen = set()
    for tolerance, nudge in product((1e-2, 1e-4, 1e-8), (None, Nudge(y, 0.4), Nudge(y, -0.4, "drive"))):
        wanted, found = (m.relax(circuit, x, LIMIT, None, nudge, tolerance) for m in (reference, ops))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.states, wanted.states, strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
        seen.add(wanted.steps.item())
    assert len(seen) >= 3
    assert max(seen) < LIMIT


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("settings", LEARNING, ids=name_of)
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_kernels_learn_in_as_many_steps_as_the_reference(
    family: dict[str, Any], settings: dict[str, Any], symmetric: bool
) -> None:
    problem = random_problem(SIZES, 23, **family)
    steps: dict[ModuleType, list[int]] = {}

    def run(module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
        ran = learn(module, circuit, x, nudge, symmetric=symmetric, **settings)
        steps[module] = ran.steps.tolist()
        return results_of(ran, circuit)

    assert_agreement(run, [(problem, Nudge(problem.target, 0.4))])
    assert steps[ops] == steps[reference]
    assert len(steps[ops]) == ((4 if "update" in settings else 3) if symmetric else 2)
    assert all(4 < count < LIMIT for count in steps[ops])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_kernels_stop_alike_for_every_number_of_threads(
    threads: Callable[[int], None], family: dict[str, Any], dtype: torch.dtype
) -> None:
    """Where workers share by samples, too: enough of them for five."""
    circuit, x, y = random_problem(SIZES, 23, dtype=dtype, **family)
    nudge, runs = Nudge(y, 0.4), []
    for count in (1, 2, 3, 5):
        threads(count)
        states, steps = ops.relax(circuit, x, LIMIT, tolerance=TOLERANCE)
        found = [steps, *states]
        for settings, symmetric in product(LEARNING, (False, True)):
            ran = learn(ops, circuit, x, nudge, symmetric=symmetric, **settings)
            found += [ran.steps, *chain(*results_of(ran, circuit).values())]
        runs.append(found)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanes_past_the_last_unit_have_no_say(kernels: str, dtype: torch.dtype) -> None:
    """A target where the output already is moves no unit; in a lane without a unit, 0 pulls rho(0) away."""
    circuit, x, _ = random_problem(SIZES, 7, dtype=dtype)
    free = ops.relax(circuit, x, LIMIT).states
    nudge = Nudge(free[-1], 0.9)
    assert ops.relax(circuit, x, LIMIT, free, nudge, 1e-3).steps.tolist() == [4]
    nudge = Nudge(free[-1] + 1e-2, 0.9)
    assert ops.relax(circuit, x, LIMIT, free, nudge, 1e-3).steps.item() > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_kernels_never_settle_on_states_that_are_not_finite(kernels: str, bad: float, dtype: torch.dtype) -> None:
    circuit, x, _ = random_problem(SIZES, 7, activation="linear", dtype=dtype)
    assert ops.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    for unit in (0, 4):
        broken = copy_of(circuit)
        broken.biases[-1][unit] = bad
        assert ops.relax(broken, x, 30, tolerance=1e300).steps.tolist() == [30]
    x[-1, -1] = bad
    assert ops.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convolutions", [(), (Convolution(),)], ids=["dense", "convolution"])
def test_tolerances_between_two_float32_numbers(convolutions: tuple[Convolution, ...], dtype: torch.dtype) -> None:
    for module in (ops, reference):
        assert_tolerances_are_exact(module, dtype, convolutions)


# --- The public API


def test_settle_returns_the_steps_too() -> None:
    net, (x, y) = network(), batch()
    states, steps = net.settle(x, LIMIT, backend="reference", tolerance=TOLERANCE)
    assert (steps.shape, steps.dtype) == ((1,), torch.int64)
    assert 0 < steps.item() < LIMIT
    assert all(map(torch.equal, states, net.relax(x, LIMIT, backend="reference", tolerance=TOLERANCE)))
    assert all(map(torch.equal, states, net.relax(x, steps.item(), backend="reference")))
    settings: dict[str, Any] = {"states": states, "target": y, "beta": 0.3, "backend": "reference"}
    nudged, steps = net.settle(x, LIMIT, tolerance=TOLERANCE, **settings)
    assert all(map(torch.equal, nudged, net.relax(x, steps.item(), **settings)))
    assert net.settle(x, 6, backend="reference").steps.item() == 6


def steps_of(net: cep.Network, rule: type, **settings: Any) -> tuple[list[int], list[int]]:
    """The steps of a training step and of a prediction before it."""
    x, y = batch()
    phases = {"free_steps": LIMIT, "nudged_steps": 60, "beta": 0.3, "backend": "reference"}
    trained = rule(net, **{**phases, **settings})
    predicted = trained.predict(x, y).steps
    assert predicted.dtype == torch.int64
    return (trained.step if rule is cep.CEP else trained.backward)(x, y).steps.tolist(), predicted.tolist()


@pytest.mark.parametrize(("rule", "settings"), [(cep.EP, {}), (cep.CEP, {"lr": 0.1})])
def test_rules_report_the_steps_of_each_phase(rule: type, settings: dict[str, Any]) -> None:
    net = network(free_steps=7)
    assert steps_of(net, rule, **settings) == ([LIMIT, 60], [LIMIT])
    assert net.free_steps == 7
    symmetric = settings | {"nudging": "symmetric"}
    assert steps_of(net, rule, **symmetric) == ([LIMIT] + [60] * (3 if rule is cep.CEP else 2), [LIMIT])
    fewer, predicted = steps_of(net, rule, **symmetric, tolerance=1e-6)
    assert predicted == fewer[:1]
    assert fewer[0] < LIMIT
    assert min(fewer[1:]) < 60


def test_bptt_makes_all_its_steps() -> None:
    x, y = batch()
    rule = cep.BPTT(network(), 20, 5, backend="reference")
    assert rule.backward(x, y).steps.tolist() == [20]
    assert rule.predict(x, y).steps.tolist() == [20]


@pytest.mark.parametrize("tolerance", [-1e-3, math.nan, math.inf, "tight", True])
@pytest.mark.parametrize(
    "call",
    [
        lambda net, tolerance: net.relax(X, 5, tolerance=tolerance),
        lambda net, tolerance: cep.EP(net, 5, 5, 0.1, tolerance=tolerance),
        lambda net, tolerance: cep.CEP(net, 5, 5, 0.1, 0.1, tolerance=tolerance),
    ],
)
def test_other_tolerances_are_refused(call: Callable[[cep.Network, Any], object], tolerance: Any) -> None:
    """... before anything changes."""
    net = network(free_steps=7)
    message = rf"tolerance must be None or a finite number >= 0, got {tolerance!r}"
    with pytest.raises(ValueError, match=message):
        call(net, tolerance)
    assert net.free_steps == 7
    assert all(p.grad is None for p in net.parameters())


def test_update_is_checked() -> None:
    net = network()
    with pytest.raises(ValueError, match="update must be one of 'auto', 'literal', 'low_rank', got 'fast'"):
        cep.CEP(net, 5, 5, 0.1, 0.1, update="fast")


@pytest.mark.parametrize("update", ["auto", "literal", "low_rank"])
def test_the_reference_has_one_form_of_the_continual_update(update: str) -> None:
    net = network()
    same = network()
    same.load_state_dict(net.state_dict())
    for trained, settings in ((net, {"update": update}), (same, {})):
        cep.CEP(trained, 5, 5, 0.1, 0.1, backend="reference", **settings).step(X, Y)
    assert all(map(torch.equal, net.parameters(), same.parameters()))
