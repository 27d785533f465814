"""The gate of a vector field's contrast: golden cases, its formula by itself, Theorem 1, and what has no gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact_problems import FREE_STEPS, random_states, vector
from golden_steps import assert_step_is_golden
from problems import Problem, random_problem, relative_error
from project import GOLDEN
from torch import Tensor, nn

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Circuit, Nudge, rho_prime
from ceprop_cuda.spec.gates import slopes_at, step_with_slopes

GATES = ["unit", "connection"]
GATE_NAMES = sorted(path.stem for path in GOLDEN.glob("cvf_gate_*.npz"))


def test_there_is_a_golden_case_of_either_gate() -> None:
    assert len(GATE_NAMES) == 2


@pytest.mark.parametrize("name", GATE_NAMES)
def test_golden_step(name: str) -> None:
    assert_step_is_golden(name, reference)


# --- The slopes


def parts_of_a_step(circuit: Circuit, x: Tensor, states: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What reaches the layers of a synchronous chain from below, and those but the last from above."""
    below = [
        u @ w.T + b for u, w, b in zip([x, *states[:-1]], circuit.weights, circuit.biases, strict=True) if b is not None
    ]
    assert circuit.free_feedback is not None
    return below, [v @ weight for v, weight in zip(states[1:], circuit.free_feedback, strict=True)]


@pytest.mark.parametrize("at", ["state", "drive"])
@pytest.mark.parametrize("gate", GATES)
def test_slopes_of_a_step(gate: str, at: str) -> None:
    """A nudge at the drive is something that rho is applied to, one at the state is not."""
    circuit, x, y = random_problem((7, 6, 5, 4), feedback="free")
    states = random_states(circuit, x)
    below, above = parts_of_a_step(circuit, x, states)
    pull = 0.4 * (y - states[-1])
    whole = [b + a for b, a in zip(below, [*above, pull if at == "drive" else 0], strict=True)]
    up, down = (whole, whole[:-1]) if gate == "unit" else (below, above)
    after, slopes = step_with_slopes(circuit, x, states, Nudge(y, 0.4, at), gate)
    assert all(map(torch.equal, after, reference.step(circuit, x, states, Nudge(y, 0.4, at))))
    assert slopes is not None and list(slopes.below) == [1, 2]
    for found, a in zip([*slopes.above, *slopes.below.values()], [*up, *down], strict=True):
        assert relative_error(found, rho_prime("sigmoid", a)) < 1e-14


def test_slopes_of_the_second_turn_are_at_the_drives_of_the_states_after_the_first() -> None:
    circuit, x, y = random_problem((7, 6, 5, 4), feedback="free", schedule="asynchronous")
    states = random_states(circuit, x)
    after, slopes = step_with_slopes(circuit, x, states, Nudge(y, 0.4), "unit")
    below, above = parts_of_a_step(circuit, x, [after[0], states[1], after[2]])
    assert slopes is not None
    assert relative_error(slopes.above[1], rho_prime("sigmoid", below[1] + above[1])) < 1e-14
    assert torch.equal(slopes.above[1], slopes.below[2])


# --- Their place in the contrast


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_contrast_of_ep(accumulate: bool, dynamics: str, gate: str) -> None:
    """Between the ends by the slopes at the free state; summed over the steps by those of each step."""
    circuit, x, y = random_problem(feedback="free", dynamics=dynamics)
    phases: dict[str, Any] = {"free_steps": 20, "nudged_steps": 4, "accumulate": accumulate}
    found = reference.ep_step(circuit, x, Nudge(y, 0.3), **phases, gate=gate).gradients
    free = reference.relax(circuit, x, 20).states
    path, slopes = [free], []
    for _ in range(4):
        after, of_step = step_with_slopes(circuit, x, path[-1], Nudge(y, 0.3), gate)
        path.append(after)
        slopes.append(of_step)
    pairs = list(zip(path, path[1:], slopes, strict=False))
    if not accumulate:
        pairs = [(free, path[-1], slopes_at(circuit, x, free, gate))]
    wanted = [torch.zeros_like(p) for p in circuit.parameters()]
    for before, after, of_pair in pairs:
        assert of_pair is not None
        sent = [x, *before] if dynamics == "prototypical" else [rho_of(s) for s in (x, *before)]
        moved = [b - a for a, b in zip(before, after, strict=True)]
        up = [g * d for g, d in zip(of_pair.above, moved, strict=True)]
        down = [of_pair.below[e] * moved[e - 1] for e in (1, 2)]
        terms = [d.T @ u for d, u in zip(up, sent, strict=False)]
        terms += [d.sum(0) for d in up] + [v.T @ d for v, d in zip(sent[2:], down, strict=True)]
        wanted = [total - term / (0.3 * len(x)) for total, term in zip(wanted, terms, strict=True)]
    for gradient, expected in zip(found.parameters(), wanted, strict=True):
        assert relative_error(gradient, expected) < 1e-12


def rho_of(s: Tensor) -> Tensor:
    return torch.sigmoid(4 * s - 2)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_linear_units_have_the_gate_one(symmetric: bool, gate: str) -> None:
    circuit, x, y = random_problem(feedback="free", activation="linear")
    phases: dict[str, Any] = {"free_steps": 20, "nudged_steps": 4, "symmetric": symmetric}
    for accumulate in (False, True):
        plain, gated = (
            reference.ep_step(circuit, x, Nudge(y, 0.3), **phases, accumulate=accumulate, gate=g) for g in (None, gate)
        )
        assert all(map(torch.equal, plain.gradients.parameters(), gated.gradients.parameters()))
    plain, gated = (reference.cep_step(circuit, x, Nudge(y, 0.3), **phases, lr=[0.1] * 3, gate=g) for g in (None, gate))
    assert all(map(torch.equal, plain.circuit.parameters(), gated.circuit.parameters()))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_continual_ep_meets_the_summed_contrasts_of_ep_as_lr_shrinks(gate: str, symmetric: bool) -> None:
    circuit, x, y = random_problem(feedback="free")
    phases: dict[str, Any] = {"free_steps": FREE_STEPS, "nudged_steps": 100, "symmetric": symmetric, "gate": gate}
    expected = reference.ep_step(circuit, x, Nudge(y, 0.1), accumulate=True, **phases).gradients
    errors = []
    for lr in (1e-4, 2e-4):
        after = reference.cep_step(circuit, x, Nudge(y, 0.1), lr=[lr] * 3, **phases).circuit
        changes = [((p - q) / lr).flatten() for p, q in zip(after.parameters(), circuit.parameters(), strict=True)]
        errors.append(relative_error(torch.cat(changes), -vector(expected)))
    assert errors[0] < 0.01 and 1.9 < errors[1] / errors[0] < 2.1


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pools", ["mm", "ai"])
def test_convolutions_have_it_unit_by_unit_after_the_pooling(pools: str, gate: str) -> None:
    """W by the derivative of the summed F(u) times what moved; V by that of F^T, at the maxima of either state."""
    torch.manual_seed(0)
    net = cep.convnet((2, 12, 12), (3, 4), 3, 1, pools, (5,), feedback="free", activation="tanh").double()
    x, y = torch.rand(3, 2, 12, 12, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[:3]
    circuit = net.circuit().leaves()
    free = reference.relax(circuit, x, 15).states
    after, slopes = step_with_slopes(circuit, x, free, Nudge(y, 0.3), gate)
    assert slopes is not None
    found = reference.contrast(circuit, x, free, after, free, 0.3, slopes=slopes)
    sent = [x, *free]
    for e in range(3):
        d = (slopes.above[e] * (after[e] - free[e])).detach()
        through = reference_forward(circuit, sent[e].detach(), e)
        (wanted,) = torch.autograd.grad((through * d).sum() / (0.3 * len(x)), circuit.weights[e], retain_graph=True)
        assert relative_error(found.weights[e].detach(), wanted) < 1e-12
        assert relative_error(found.biases[e].detach(), d.sum((0, *range(2, d.ndim))) / (0.3 * len(x))) < 1e-12  # type: ignore[union-attr]
    for e in (1, 2):
        assert found.feedback[e - 1].shape == circuit.feedback(e).shape
        total = torch.zeros_like(circuit.feedback(e))
        for sign, state in ((1, after[e - 1].detach()), (-1, free[e - 1].detach())):
            back = reference_transpose(circuit, sent[e + 1].detach(), state, e)
            (part,) = torch.autograd.grad(
                (back * slopes.below[e].detach() * state).sum() / (0.3 * len(x)), circuit.feedback(e)
            )
            total += sign * part
        assert relative_error(found.feedback[e - 1].detach(), total) < 1e-10  # the total subtracts two large sums


def reference_forward(circuit: Circuit, u: Tensor, e: int) -> Tensor:
    return reference.connections.forward(u, circuit.weights[e], circuit.biases[e], circuit.connections[e].convolution)


def reference_transpose(circuit: Circuit, v: Tensor, u: Tensor, e: int) -> Tensor:
    return reference.connections.transpose(v, circuit.feedback(e), None, circuit.connections[e].convolution, u)


@pytest.mark.parametrize("gate", GATES)
def test_a_graph_that_is_a_chain_learns_as_the_chain(gate: str) -> None:
    def layers() -> list[nn.Linear]:
        torch.manual_seed(3)
        return [nn.Linear(6, 5), nn.Linear(5, 4)]

    chain = cep.Network(nn.Sequential(nn.Flatten(), *layers()), (6,), feedback="free").double()
    first, second = layers()
    joined = [("input", "hidden", first), ("hidden", "out", second)]
    graph = cep.graph(joined, input_shape=(6,), output="out", feedback="free").double()
    with torch.no_grad():
        for p, q in zip(graph.circuit().parameters(), chain.circuit().parameters(), strict=True):
            p.copy_(q)
    x, y = torch.rand(3, 6, dtype=torch.float64), torch.tensor([0, 3, 1])
    for net in (chain, graph):
        cep.CEP(net, 20, 5, 0.2, 0.1, backend="reference", gate=gate).step(x, y)
    assert all(map(torch.equal, graph.circuit().parameters(), chain.circuit().parameters()))


# --- Theorem 1


def angle_to_bptt(problem: Problem, gate: str | None) -> float:
    """Degrees between what continual EP adds at small rates, and minus the loss gradient of as many steps."""
    circuit, x, y = problem
    steps, lr = 12, 1e-6
    free = reference.relax(circuit, x, FREE_STEPS).states
    gradients = reference.bptt(circuit, x, y, "mse", unrolled_steps=steps, states=free).gradients
    phases: dict[str, Any] = {"free_steps": FREE_STEPS, "nudged_steps": steps, "lr": [lr] * 3, "gate": gate}
    after = reference.cep_step(circuit, x, Nudge(y, 1e-3), **phases).circuit
    changes = [((p - q) / lr).flatten() for p, q in zip(after.parameters(), circuit.parameters(), strict=True)]
    cosine = torch.cosine_similarity(torch.cat(changes), -vector(gradients), dim=0)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).item()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_theorem_1_asks_for_the_gate_of_the_unit(activation: str) -> None:
    """Drives spread over where rho bends: without its slope the update turns away from the gradient. What is left with
    it is that the nudged phase carries errors by dF/ds where the gradient goes back by its transpose."""
    circuit, x, y = random_problem((7, 6, 5, 4), batch=10, activation=activation, feedback="symmetric")
    spread = torch.Generator().manual_seed(1)
    weights = [4 * circuit.weights[0], *circuit.weights[1:]]
    biases = [2 * torch.randn(b.shape, generator=spread, dtype=b.dtype) for b in circuit.biases if b is not None]
    problem = Problem(replace(circuit, weights=weights, biases=biases), x, y)
    plain, by_unit, by_connection = (angle_to_bptt(problem, gate) for gate in (None, "unit", "connection"))
    assert by_unit < by_connection < plain
    assert by_unit < plain / 4
