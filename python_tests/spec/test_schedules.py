"""Asynchronous steps (2312.15103), on the reference: what one step does, and that the theory holds for many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from exact_problems import BETAS, EXACT, FREE_STEPS, bptt_vector, ep_vector, exact_problem, random_states, slope
from problems import Problem, random_problem, relative_error
from small_network import batch, network
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Nudge, step

FAMILIES: list[dict[str, Any]] = [
    {"dynamics": dynamics, "feedback": feedback, "readout": readout}
    for dynamics, feedback, readout in product(("prototypical", "energy"), ("tied", "free"), (False, True))
]


def name_of(family: dict[str, Any]) -> str:
    return "-".join([family["dynamics"], family["feedback"]] + ["readout"] * family["readout"])


def both(**settings: Any) -> tuple[Problem, Problem]:
    """The same problem with synchronous and with asynchronous steps."""
    synchronous, asynchronous = (random_problem(**settings, schedule=s) for s in ("synchronous", "asynchronous"))
    return synchronous, asynchronous


def nudges(problem: Problem) -> list[Nudge | None]:
    """None, and every way to nudge the problem's network."""
    if problem.circuit.structure.has_readout:
        return [None, Nudge(problem.target, 0.5, "drive", "cross_entropy")]
    return [None, Nudge(problem.target, 0.5, "state"), Nudge(problem.target, -0.5, "drive")]


def largest_move(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    return max((b - a).abs().max().item() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("at", ["state", "drive"])
def test_a_step_of_two_layers_written_out(at: str) -> None:
    circuit, x, y = random_problem((7, 6, 5), activation="tanh", schedule="asynchronous")
    (w0, w1), (b0, b1) = circuit.weights, circuit.biases
    h, o = random_states(circuit, x)
    pull = 0.3 * (y - o)
    new_h = torch.tanh(x @ w0.T + b0 + o @ w1)
    a = new_h @ w1.T + b1
    new_o = torch.tanh(a) + pull if at == "state" else torch.tanh(a + pull)
    after = step(circuit, x, [h, o], Nudge(y, 0.3, at))
    for s, wanted in zip(after, (new_h, new_o), strict=True):
        assert relative_error(s, wanted) < 1e-14


def test_an_energy_step_of_two_layers_written_out() -> None:
    circuit, x, y = random_problem((7, 6, 5), activation="tanh", dynamics="energy", dt=0.3, schedule="asynchronous")
    (w0, w1), (b0, b1) = circuit.weights, circuit.biases
    h, o = random_states(circuit, x)
    a = torch.tanh(x) @ w0.T + b0 + torch.tanh(o) @ w1
    new_h = (h + 0.3 * (-h + (1 - torch.tanh(h) ** 2) * a)).clamp(0, 1)
    new_o = (o + 0.3 * (-o + torch.tanh(new_h) @ w1.T + b1 + 0.7 * (y - o))).clamp(0, 1)
    after = step(circuit, x, [h, o], Nudge(y, 0.7))
    for s, wanted in zip(after, (new_h, new_o), strict=True):
        assert relative_error(s, wanted) < 1e-14


@pytest.mark.parametrize("sizes", [(7, 4), (7, 6, 4), (7, 6, 5, 4), (7, 6, 5, 6, 5, 4)], ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_a_step_is_half_a_synchronous_one_after_the_other(family: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """Even layers move, then odd layers, which the nudge meets at the top of networks of either depth."""
    sizes = (*sizes, 3) if family["readout"] else sizes
    synchronous, asynchronous = both(sizes=sizes, **family)
    circuit, x, _ = synchronous
    for nudge in nudges(synchronous):
        states = random_states(circuit, x)
        before = [s.clone() for s in states]
        expected = list(states)
        for parity in (0, 1):
            expected[parity::2] = step(circuit, x, expected, nudge)[parity::2]
        assert all(map(torch.equal, step(asynchronous.circuit, x, states, nudge), expected))
        assert all(map(torch.equal, states, before))


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_both_schedules_reach_the_same_fixed_point(family: dict[str, Any]) -> None:
    synchronous, asynchronous = both(sizes=(7, 6, 5, 6, 4), **family)
    for nudge in nudges(synchronous):
        ends = [reference.relax(p.circuit, p.x, FREE_STEPS, nudge=nudge).states for p in (synchronous, asynchronous)]
        assert largest_move(*ends) < 1e-12
        assert largest_move(ends[1], step(synchronous.circuit, synchronous.x, ends[1], nudge)) < 1e-13


@pytest.mark.parametrize(("dynamics", "most"), [("prototypical", 0.6), ("energy", 0.7)])
@pytest.mark.parametrize("feedback", ["tied", "symmetric"])
def test_asynchronous_steps_need_about_half_as_many(dynamics: str, most: float, feedback: str) -> None:
    """Exactly half to first order where units forget their own state, Gauss-Seidel against Jacobi; in energy dynamics,
    which keep 1 - dt of it, the fewer the larger dt is."""
    settings = {"activation": "linear", "dynamics": dynamics, "dt": 0.8, "clip": False, "feedback": feedback}
    problems = both(sizes=(7, 12, 12, 12, 12, 12, 4), **settings)
    steps = [reference.relax(p.circuit, p.x, 1000, tolerance=1e-12).steps.item() for p in problems]
    assert 50 < steps[0] < 1000
    assert 0.4 < steps[1] / steps[0] < most


@pytest.mark.parametrize(("symmetric", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("name", EXACT)
def test_ep_meets_bptt_as_beta_shrinks(name: str, symmetric: bool, order: int) -> None:
    """As for synchronous steps, once the nudged phase has settled. Before, the two differ: BPTT goes back through the
    layers in the reverse order of their moves, and the nudged phase does not."""
    problem, nudge = exact_problem(name, schedule="asynchronous")
    expected = bptt_vector(problem, nudge(0.0), FREE_STEPS)
    found = [ep_vector(problem, nudge(beta), FREE_STEPS, symmetric=symmetric) for beta in BETAS]
    errors = [relative_error(estimate, expected) for estimate in found]
    assert abs(slope(BETAS, errors) - order) < 0.05
    assert 1e-9 < errors[0] < 0.02


# --- The public API


def test_everything_follows_the_networks_schedule() -> None:
    net, (x, y) = network(schedule="asynchronous", free_steps=9), batch()
    same = network()
    same.load_state_dict(net.state_dict())
    circuit, target = net.circuit(), torch.nn.functional.one_hot(y, 3).double()
    assert circuit.dynamics.schedule == "asynchronous"
    nudge, phases = Nudge(target, 0.2), {"free_steps": 9, "nudged_steps": 5}
    free = reference.relax(circuit, x, 9).states
    assert all(map(torch.equal, net.relax(x, 9, backend="reference"), free))
    assert not torch.equal(same.relax(x, 9, backend="reference")[-1], free[-1])

    expected = reference.ep_step(circuit, x, nudge, **phases)
    out = cep.EP(net, beta=0.2, backend="reference", **phases).backward(x, y)
    assert all(map(torch.equal, out.nudged_states, expected.nudged_states[0]))
    for p, gradient in zip(circuit.parameters(), expected.gradients.parameters(), strict=True):
        assert torch.equal(p.grad, gradient)
    out = cep.BPTT(net, 9, 9, backend="reference").backward(x, y)
    assert all(map(torch.equal, out.free_states, free))

    moved = reference.cep_step(circuit, x, nudge, lr=[0.1] * 3, **phases).circuit.parameters()
    cep.CEP(net, beta=0.2, lr=0.1, backend="reference", **phases).step(x, y)
    assert all(map(torch.equal, circuit.parameters(), moved))
