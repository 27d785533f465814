"""Networks of any connections against independent code and against theory, by the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from graph_problems import GOLDEN_GRAPHS, GRAPHS, batch_for, load_golden_graph, one_hot, phi_by_modules, random_states
from graph_problems import small_graph as graph
from problems import relative_error
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Nudge, drive, emitted

SMOOTH_ENERGY: dict[str, Any] = {
    "activation": "tanh",
    "output_activation": "linear",
    "dynamics": "energy",
    "dt": 0.5,
    "clip": False,
}
FREE_STEPS = 300
BETAS = (0.001, 0.002, 0.004, 0.008)


def slope(sizes: tuple[float, ...], errors: list[float]) -> float:
    """The power of size with which errors fall, by least squares in log-log."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def vector(change: reference.PerParameter) -> Tensor:
    return torch.cat([dp.flatten() for dp in change.parameters()])


def plain(net: cep.Network) -> Circuit:
    """The network's circuit, whose parameters want no gradients."""
    circuit = net.circuit()
    free = circuit.free_feedback
    return replace(
        circuit,
        weights=[w.detach() for w in circuit.weights],
        biases=[None if b is None else b.detach() for b in circuit.biases],
        free_feedback=None if free is None else [v.detach() for v in free],
    )


# --- One training step of independent code


@pytest.mark.parametrize("name", GOLDEN_GRAPHS)
def test_golden(name: str) -> None:
    config, arrays, y, net = load_golden_graph(name)
    phases = {"free_steps": config["T"], "nudged_steps": config["K"], "beta": config["beta"], "loss": config["loss"]}
    phases |= {"nudge_at": config["nudge_at"], "nudging": "symmetric" if config["symmetric"] else "positive"}
    if config["rule"] == "cep":
        out = cep.CEP(net, **phases, lr=config["lr"]).step(arrays["x"], y)
    else:
        out = cep.EP(net, **phases).backward(arrays["x"], y)
    ends = [("free", out.free_states), ("nudged", out.nudged_states)]
    ends += [("nudged_minus", out.nudged_minus_states)] if config["symmetric"] else []
    for phase, states in ends:
        for layer, s in zip(net.layers, states, strict=True):
            assert relative_error(s, arrays[f"{phase}_{layer}"]) < 1e-9
    for kind, parameters in (("weight", net.weights), ("bias", net.biases)):
        for place, p in enumerate(parameters):
            if p is None:
                assert f"{kind}{place}" not in arrays
            elif config["rule"] == "cep":
                before, after = arrays[f"{kind}{place}"], arrays[f"{kind}{place}_after"]
                assert relative_error(p.detach() - before, after - before) < 1e-9
            else:
                assert relative_error(p.grad, arrays[f"{kind}{place}_grad"]) < 1e-9


def test_there_are_golden_cases() -> None:
    assert GOLDEN_GRAPHS == ["graph_dense_skip", "graph_dense_skip_cep", "graph_resnet_relu6"]


# --- The primitive function


@pytest.mark.parametrize("name", GRAPHS)
def test_the_drive_is_phis_derivative_by_the_states(name: str) -> None:
    net = graph(name)
    x, _ = batch_for(net)
    states = [s.requires_grad_() for s in random_states(net, x)]
    expected = torch.autograd.grad(phi_by_modules(net, x, states), states)
    circuit = net.circuit()
    for layer, wanted in enumerate(expected):
        assert relative_error(drive(circuit, emitted(circuit, x, states), layer), wanted) < 1e-13


@pytest.mark.parametrize("name", GRAPHS)
def test_phi_and_energy_are_of_each_sample(name: str) -> None:
    net = graph(name)
    x, _ = batch_for(net)
    states = random_states(net, x)
    found = net.phi(x, states)
    for sample, value in enumerate(found):
        one = slice(sample, sample + 1)
        assert relative_error(value, phi_by_modules(net, x[one], [s[one] for s in states])) < 1e-13
    of_energy = graph(name, activation="tanh", output_activation="linear", dynamics="energy")
    of_energy.load_state_dict(net.state_dict())
    out = net.layers.index("out")
    sent = [s if layer == out else torch.tanh(s) for layer, s in enumerate(states)]
    squares = sum((s**2).flatten(1).sum(1) for s in states) / 2
    assert relative_error(of_energy.phi(x, states), net.phi(torch.tanh(x), sent)) < 1e-13
    assert relative_error(of_energy.energy(x, states), squares - net.phi(torch.tanh(x), sent)) < 1e-13


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("name", GRAPHS)
def test_energy_dynamics_descend_the_gradient_of_the_nudged_energy(name: str, beta: float) -> None:
    net = graph(name, **SMOOTH_ENERGY)
    x, y = batch_for(net)
    nudge, states = Nudge(one_hot(y, 4), beta), [s.requires_grad_() for s in random_states(net, x)]
    pull = beta * len(x) * reference.loss(states[net.layers.index("out")], nudge.target, "mse")
    expected = torch.autograd.grad(net.energy(x, states).sum() + pull, states)
    after = reference.step(net.circuit(), x, states, nudge)
    for s, moved, gradient in zip(states, after, expected, strict=True):
        assert relative_error(s - moved, 0.5 * gradient) < 1e-12


@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_contrast_is_the_difference_of_phis_parameter_gradients(name: str, dynamics: str) -> None:
    net = graph(name, dynamics=dynamics)
    x, _ = batch_for(net)
    circuit, (earlier, later) = net.circuit(), (random_states(net, x) for _ in range(2))
    difference = (net.phi(x, later) - net.phi(x, earlier)).sum() / (0.3 * len(x))
    expected = torch.autograd.grad(difference, circuit.parameters())
    found = reference.contrast(circuit, x, earlier, later, earlier, 0.3).parameters()
    for dp, wanted in zip(found, expected, strict=True):
        assert relative_error(dp, wanted) < 1e-12


@pytest.mark.parametrize("name", GRAPHS)
def test_a_vector_fields_contrast_is_the_movement_times_the_drives_parameter_gradients(name: str) -> None:
    """Of max pooling, whose feedback weights pick the maxima of either state, the ways up alone."""
    net = graph(name, feedback="free")
    x, _ = batch_for(net)
    circuit, (earlier, later, fixed) = net.circuit(), (random_states(net, x) for _ in range(3))
    seen = emitted(circuit, x, fixed)
    moves = [
        (drive(circuit, seen, layer) * (b - a)).sum() for layer, (a, b) in enumerate(zip(earlier, later, strict=True))
    ]
    expected = torch.autograd.grad(sum(moves) / (0.3 * len(x)), circuit.parameters())
    found = reference.contrast(circuit, x, earlier, later, fixed, 0.3).parameters()
    assert len(found) == len(expected) == len(list(net.parameters()))
    pooled = [
        v
        for e, v in enumerate(net.feedback)
        if v is not None and (c := circuit.connections[e].convolution) and c.pool == "max"
    ]
    assert len(pooled) == (name == "maps")
    for p, dp, wanted in zip(circuit.parameters(), found, expected, strict=True):
        if not any(p is v for v in pooled):
            assert relative_error(dp, wanted) < 1e-12


# --- EP, continual EP and the gradient


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["skips", "backwards", "maps"])
def test_ep_meets_bptt_as_beta_shrinks(name: str, symmetric: bool) -> None:
    net = graph(name, **SMOOTH_ENERGY)
    (x, y), circuit = batch_for(net), plain(net)
    target, steps = one_hot(y, 4), {"free_steps": FREE_STEPS, "nudged_steps": 12}
    free = reference.relax(circuit, x, FREE_STEPS).states
    exact = vector(reference.bptt(circuit, x, target, "mse", unrolled_steps=12, states=free).gradients)
    errors = [
        relative_error(
            vector(reference.ep_step(circuit, x, Nudge(target, beta), **steps, symmetric=symmetric).gradients), exact
        )
        for beta in BETAS
    ]
    assert abs(slope(BETAS, errors) - (2 if symmetric else 1)) < 0.1
    assert errors[0] < 0.01


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("name", ["skips", "maps"])
def test_continual_ep_meets_ep_as_lr_shrinks(name: str, feedback: str) -> None:
    net = graph(name, feedback=feedback)
    (x, y), circuit = batch_for(net), plain(net)
    nudge, phases = Nudge(one_hot(y, 4), 0.1), {"free_steps": 100, "nudged_steps": 10}
    expected = vector(reference.ep_step(circuit, x, nudge, **phases, accumulate=True).gradients)
    sizes, errors = (1e-5, 2e-5, 4e-5), []
    for size in sizes:
        rates = [size / (1 + e) for e in range(len(circuit.weights))]
        after = reference.cep_step(circuit, x, nudge, **phases, lr=rates).circuit
        of_biases = [rate for rate, b in zip(rates, circuit.biases, strict=True) if b is not None]
        of_feedback = [rates[e] for e in circuit.structure.inner] if feedback == "free" else []
        moved = zip(after.parameters(), circuit.parameters(), [*rates, *of_biases, *of_feedback], strict=True)
        changes = [((p - before) / rate).flatten() for p, before, rate in moved]
        errors.append(relative_error(torch.cat(changes), -expected))
    assert abs(slope(sizes, errors) - 1) < 0.1
    assert errors[0] < 0.01


# --- Turns


TURNS: dict[str, list[list[str]]] = {
    "synchronous": [["h1", "h2", "out"]],
    "asynchronous": [["h1", "out"], ["h2"]],
    "three": [["out"], ["h1"], ["h2"]],
    "one by one": [["h1"], ["h2"], ["out"]],
}


@pytest.mark.parametrize("turns", TURNS)
def test_the_layers_of_a_turn_move_together_by_what_the_turns_before_have_become(turns: str) -> None:
    net = graph("skips", turns=TURNS[turns])
    x, _ = batch_for(net)
    states = random_states(net, x)
    expected = [s.clone() for s in states]
    for turn in TURNS[turns]:
        leaves = [s.clone().requires_grad_() for s in expected]
        drives = torch.autograd.grad(phi_by_modules(net, x, leaves), leaves)
        for name in turn:
            layer = net.layers.index(name)
            expected[layer] = torch.sigmoid(4 * drives[layer] - 2)
    for s, wanted in zip(net.relax(x, 1, states=states), expected, strict=True):
        assert relative_error(s, wanted) < 1e-14


def test_all_turns_lead_to_one_fixed_point() -> None:
    net = graph("skips")
    (x, _), settled = batch_for(net), None
    for turns in TURNS.values():
        moving = graph("skips", turns=turns)
        moving.load_state_dict(net.state_dict())
        states = moving.relax(x, FREE_STEPS)
        settled = settled or states
        for s, wanted in zip(states, settled, strict=True):
            assert relative_error(s, wanted) < 1e-13


@pytest.mark.parametrize("name", ["synchronous", "asynchronous"])
def test_a_schedule_is_short_for_turns(name: str) -> None:
    by_name, by_turns = graph("skips", schedule=name), graph("skips", turns=TURNS[name])
    by_turns.load_state_dict(by_name.state_dict())
    x, _ = batch_for(by_name)
    assert all(map(torch.equal, by_name.relax(x, 5), by_turns.relax(x, 5)))


def test_asynchronous_turns_go_by_the_longest_path() -> None:
    """h1 and h2 of "maps" are a and b; c is above both ways to b, the output above c and, by a skip, above a."""
    structure = graph("maps").circuit().structure
    assert structure.depths() == [1, 2, 3, 4]
    assert structure.scheduled_turns("asynchronous") == ((0, 2), (1, 3))
    backwards = graph("backwards")
    assert backwards.layers == ["h1", "out", "h2"]
    assert backwards.circuit().structure.depths() == [1, 3, 2]
    assert chain(5).scheduled_turns("asynchronous") == ((0, 2, 4), (1, 3))


@pytest.mark.parametrize("tolerance", [1e-12, 1e-3])
def test_a_phase_ends_where_no_layer_moves_by_more(tolerance: float) -> None:
    net = graph("maps")
    x, _ = batch_for(net)
    states, steps = net.settle(x, 400, tolerance=tolerance)
    assert steps < 200
    for s, before in zip(states, net.relax(x, int(steps) - 1), strict=True):
        assert (s - before).abs().max() <= tolerance
