"""The reference against the theory of equilibrium propagation, in float64: what the formulas mean, not only that two
codes agree on them. (1905.13633: EP = BPTT; 2005.04168: continual EP -> EP; 2006.03824: symmetric nudging.)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_problems import (
    BETAS,
    EXACT,
    FREE_STEPS,
    HARD_ENERGY,
    NUDGED_STEPS,
    SMOOTH_ENERGY,
    bptt_vector,
    ep_vector,
    exact_problem,
    random_states,
    slope,
    vector,
)
from problems import random_problem, relative_error
from torch import Tensor

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge, activation_of, drive, emitted, rho, rho_prime


def rates(circuit: Circuit, lr: Sequence[float]) -> list[float]:
    """The learning rate of each of circuit.parameters(): weights, biases, feedback."""
    return [*lr, *lr, *(lr[1:] if circuit.free_feedback else [])]


@pytest.mark.parametrize(
    ("name", "points", "values", "slopes"),
    [
        ("sigmoid", [0.5, 1], [0.5, 1 / (1 + math.exp(-2))], [1, 1 / math.cosh(1) ** 2]),
        ("hard_sigmoid", [-0.3, 0, 0.3, 1, 1.3], [0, 0, 0.3, 1, 1], [0, 1, 1, 1, 0]),
        ("half_hard_sigmoid", [-0.3, 0, 1.3, 2, 2.3], [0, 0, 0.65, 1, 1], [0, 0.5, 0.5, 0.5, 0]),
        ("centered_hard_sigmoid", [-0.8, -0.5, 0.3, 0.5, 0.8], [-0.5, -0.5, 0.3, 0.5, 0.5], [0, 1, 1, 1, 0]),
        ("tanh", [-1, 0.5], [math.tanh(-1), math.tanh(0.5)], [1 / math.cosh(1) ** 2, 1 / math.cosh(0.5) ** 2]),
        ("linear", [-3, 2], [-3, 2], [1, 1]),
        ("relu", [-0.3, 0, 0.3, 70], [0, 0, 0.3, 70], [0, 1, 1, 1]),
        ("relu6", [-0.3, 0, 0.3, 6, 6.3], [0, 0, 0.3, 6, 6], [0, 1, 1, 1, 0]),
    ],
)
def test_activations(name: str, points: list[float], values: list[float], slopes: list[float]) -> None:
    """The papers' formulas; at a kink the slope of the unclipped side, because energy dynamics start at 0, and with
    rho'(0) = 0 would stay there. (The gradient of torch.clamp is 0 at its bounds.)"""
    x = torch.tensor(points, dtype=torch.float64)
    assert rho(name, x).tolist() == pytest.approx(values, abs=1e-15)
    assert rho_prime(name, x).tolist() == pytest.approx(slopes, abs=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rho_prime_is_autograds_derivative_of_rho(name: str) -> None:
    kinks = torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.0, 6.0], dtype=torch.float64)
    x = torch.cat([torch.linspace(-3.001, 7, 1000, dtype=torch.float64), kinks - 1e-9, kinks + 1e-9]).requires_grad_()
    (expected,) = torch.autograd.grad(rho(name, x).sum(), x)
    assert torch.allclose(rho_prime(name, x), expected, rtol=1e-12, atol=1e-14)


# --- Dynamics: with tied feedback both kinds are gradients of one scalar function of the states


def phi(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Phi = sum over layers and samples of r[l] . (W[l] r[l-1] + b[l]), r = s or, for energy dynamics, rho(s)."""
    d = circuit.dynamics
    if d.kind == "energy":
        names = [d.activation] * circuit.layers + [d.output_activation]
        x, *states = (rho(name, s) for name, s in zip(names, [x, *states], strict=True))
    terms = zip([x, *states], states, circuit.weights, circuit.biases, strict=False)
    return sum((above * F.linear(below, w, b)).sum() for below, above, w, b in terms)


def energy(circuit: Circuit, x: Tensor, states: Sequence[Tensor], nudge: Nudge) -> Tensor:
    """||s||^2 / 2 - Phi + beta loss, summed over the batch."""
    pull = nudge.beta * len(x) * reference.loss(states[-1], nudge.target, nudge.loss)
    return sum((s**2).sum() for s in states) / 2 - phi(circuit, x, states) + pull


def drives(circuit: Circuit, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """What reaches each layer, ``(B, n_l)``."""
    seen = emitted(circuit, x, states)
    return [drive(circuit, seen, layer) for layer in range(circuit.layers)]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_energy_dynamics_descend_the_gradient_of_the_nudged_energy(loss: str) -> None:
    circuit, x, y = random_problem(**SMOOTH_ENERGY)
    nudge = Nudge(y, 0.7, loss=loss)
    states = [s.requires_grad_() for s in random_states(circuit, x)]
    after = reference.step(circuit, x, states, nudge)
    expected = torch.autograd.grad(energy(circuit, x, states, nudge), states)
    for s, moved, gradient in zip(states, after, expected, strict=True):
        assert relative_error(s - moved, circuit.dynamics.dt * gradient) < 1e-13


def test_energy_dynamics_of_a_vector_field_have_no_rho_prime_factor() -> None:
    circuit, x, _ = random_problem(dynamics="energy", feedback="free", clip=False)
    states = random_states(circuit, x)
    step = zip(states, reference.step(circuit, x, states), drives(circuit, x, states), strict=True)
    for s, moved, a in step:
        assert relative_error(moved, s + circuit.dynamics.dt * (a - s)) < 1e-14


@pytest.mark.parametrize("beta", [0, 0.7])
@pytest.mark.parametrize("settings", [SMOOTH_ENERGY, HARD_ENERGY], ids=["smooth", "hard"])
def test_small_energy_steps_lower_the_energy(settings: dict[str, Any], beta: float) -> None:
    """By at least ||step||^2 / (2 dt), as gradient descent (projected, where states are clipped) with small steps must.

    The output layer has no rho' factor, so that this needs rho' = 1 there: linear units, or hard ones in the clip.
    """
    dt = 0.05
    circuit, x, y = random_problem(**settings, dt=dt, batch=20)
    nudge = Nudge(y, beta)
    states = random_states(circuit, x)
    first = before = energy(circuit, x, states, nudge)
    for _ in range(100):
        old, states = states, reference.step(circuit, x, states, nudge)
        after = energy(circuit, x, states, nudge)
        moved = sum(((s - o) ** 2).sum() for s, o in zip(states, old, strict=True))
        assert before - after >= moved / (2 * dt) - 1e-12
        before = after
    assert first - before > 1


@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
def test_tied_contrast_is_the_difference_of_phis_parameter_gradients(dynamics: str) -> None:
    circuit, x, _ = random_problem(dynamics=dynamics)
    earlier, later = random_states(circuit, x), random_states(circuit, x)
    for p in circuit.parameters():
        p.requires_grad_()
    difference = phi(circuit, x, later) - phi(circuit, x, earlier)
    expected = torch.autograd.grad(difference / (0.3 * len(x)), circuit.parameters())
    found = reference.contrast(circuit, x, earlier, later, earlier, 0.3).parameters()
    for dp, wanted in zip(found, expected, strict=True):
        assert relative_error(dp, wanted) < 1e-13


@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
def test_a_vector_fields_contrast_is_the_movement_times_the_drives_parameter_gradients(dynamics: str) -> None:
    circuit, x, _ = random_problem(dynamics=dynamics, feedback="free")
    earlier, later, fixed = (random_states(circuit, x) for _ in range(3))
    for p in circuit.parameters():
        p.requires_grad_()
    terms = zip(drives(circuit, x, fixed), earlier, later, strict=True)
    projection = sum((drive_of_layer * (b - a)).sum() for drive_of_layer, a, b in terms)
    expected = torch.autograd.grad(projection / (0.3 * len(x)), circuit.parameters())
    found = reference.contrast(circuit, x, earlier, later, fixed, 0.3).parameters()
    for dp, wanted in zip(found, expected, strict=True):
        assert relative_error(dp, wanted) < 1e-13


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
def test_free_phase_reaches_one_fixed_point_from_anywhere(dynamics: str, feedback: str) -> None:
    circuit, x, _ = random_problem(dynamics=dynamics, feedback=feedback)
    states = reference.relax(circuit, x, FREE_STEPS).states
    elsewhere = reference.relax(circuit, x, FREE_STEPS, random_states(circuit, x)).states
    for s, after, other in zip(states, reference.step(circuit, x, states), elsewhere, strict=True):
        assert (s - after).abs().max() < 1e-13
        assert (s - other).abs().max() < 1e-12


# --- EP estimates the gradient that BPTT computes


@pytest.mark.parametrize(("symmetric", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("name", EXACT)
def test_ep_meets_bptt_as_beta_shrinks(name: str, symmetric: bool, order: int) -> None:
    problem, nudge = exact_problem(name)
    expected = bptt_vector(problem, nudge(0.0), NUDGED_STEPS)
    errors = [relative_error(ep_vector(problem, nudge(beta), symmetric=symmetric), expected) for beta in BETAS]
    assert abs(slope(BETAS, errors) - order) < 0.05
    assert 1e-9 < errors[0] < 0.01  # rounding makes about 1e-12 of it


@pytest.mark.parametrize("name", [name for name in EXACT if name != "energy tanh"])
def test_hard_units_keep_to_their_linear_piece_in_the_nudged_phases(name: str) -> None:
    """What the test above relies on: drives on the same sides of 0 and 1 throughout, and on both sides of 0 or 1."""
    (circuit, x, _), nudge = exact_problem(name)
    free = reference.relax(circuit, x, FREE_STEPS).states
    hard = [layer for layer in range(circuit.layers) if activation_of(circuit, layer) == "hard_sigmoid"]

    def inside(states: Sequence[Tensor]) -> Tensor:
        a = drives(circuit, x, states)
        return torch.cat([(a[layer] > 0) & (a[layer] < 1) for layer in hard], dim=1)

    pieces = inside(free)
    assert 0.5 < pieces.double().mean() < 0.95
    for beta in (max(BETAS), -max(BETAS)):
        states = free
        for _ in range(NUDGED_STEPS):
            states = reference.step(circuit, x, states, nudge(beta))
            assert torch.equal(inside(states), pieces)
    if not circuit.structure.has_readout:
        assert ((states[-1] > 0) & (states[-1] < 1)).all()


@pytest.mark.parametrize("name", EXACT)
def test_ep_meets_bptt_after_every_number_of_steps(name: str) -> None:
    """K nudged steps carry the error as far as K steps of BPTT do."""
    problem, nudge = exact_problem(name)
    for steps in range(1, 7):
        expected = bptt_vector(problem, nudge(0.0), steps)
        assert relative_error(ep_vector(problem, nudge(0.001), steps, symmetric=True), expected) < 1e-5


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, "mse"),
        ({"feedback": "free", "dynamics": "energy", "clip": False}, "mse"),
        ({"output_activation": "linear", "bias": False}, "cross_entropy"),
        ({"activation": "tanh", "readout": True, "feedback": "free"}, "cross_entropy"),
        ({"schedule": "asynchronous"}, "mse"),
    ],
)
def test_bptt_is_the_loss_gradient_by_finite_differences(settings: dict[str, Any], loss: str) -> None:
    circuit, x, y = random_problem((3, 4, 3, 2), **settings)
    start, step = random_states(circuit, x), 1e-5

    def loss_after_5_steps() -> float:
        states = reference.relax(circuit, x, 5, start).states
        return reference.loss(reference.logits(circuit, states), y, loss).item()

    found = reference.bptt(circuit, x, y, loss, unrolled_steps=5, states=start).gradients.parameters()
    for p, gradient in zip(circuit.parameters(), found, strict=True):
        numeric = torch.zeros_like(p)
        for index in np.ndindex(*p.shape):
            value = p[index].item()
            p[index] = value + step
            above = loss_after_5_steps()
            p[index] = value - step
            numeric[index] = (above - loss_after_5_steps()) / (2 * step)
            p[index] = value
        assert relative_error(gradient, numeric) < 1e-7


def test_a_vector_field_with_v_equal_w_is_the_tied_network() -> None:
    """Same states; dW_tied = dW + dV + (s' - s)^T (s' - s) / (beta B) exactly, whose last term vanishes with beta."""
    tied, field = random_problem(), random_problem(feedback="symmetric")
    gaps = []
    for beta in BETAS:
        nudge = Nudge(tied.target, beta)
        ran, ran_field = (
            reference.ep_step(problem.circuit, problem.x, nudge, free_steps=FREE_STEPS, nudged_steps=NUDGED_STEPS)
            for problem in (tied, field)
        )
        free, (end,) = ran.free_states, ran.nudged_states
        assert all(map(torch.equal, [*free, *end], [*ran_field.free_states, *ran_field.nudged_states[0]]))
        dw_tied, dw, dv = ran.gradients.weights, ran_field.gradients.weights, ran_field.gradients.feedback
        moved = [b - a for a, b in zip(free, end, strict=True)]
        for layer in range(1, 3):
            rest = -moved[layer].T @ moved[layer - 1] / (beta * len(tied.x))
            assert relative_error(dw_tied[layer] - rest, dw[layer] + dv[layer - 1]) < 1e-11
        assert relative_error(dw_tied[0], dw[0]) < 1e-11  # the input does not move
        assert all(map(torch.equal, ran.gradients.biases, ran_field.gradients.biases))
        gaps.append(relative_error(dw_tied[1], dw[1] + dv[0]))
    assert abs(slope(BETAS, gaps) - 1) < 0.05


def test_shared_update_is_that_of_tied_weights() -> None:
    """On the states that the vector field went through; for either copy of the weights."""
    circuit, x, y = random_problem(feedback="free")
    phases = {"free_steps": 50, "nudged_steps": 8}
    shared = reference.ep_step(circuit, x, Nudge(y, 0.2), shared_update=True, **phases)
    free, (end,) = shared.free_states, shared.nudged_states
    tied = reference.contrast(replace(circuit, free_feedback=None), x, free, end, free, -0.2)
    assert relative_error(vector(shared.gradients)[: len(vector(tied))], vector(tied)) < 1e-15
    assert all(map(torch.equal, shared.gradients.feedback, shared.gradients.weights[1:]))


def test_shared_continual_updates_with_weight_decay_align_feedback() -> None:
    """Kolen-Pollack: W - V shrinks by 1 - lr decay at every step, whatever is learned."""
    circuit, x, y = random_problem(feedback="free")
    lr, decay = (0.3, 0.2, 0.1), 0.5
    after = reference.cep_step(
        circuit, x, Nudge(y, 0.2), free_steps=50, nudged_steps=8, lr=lr, shared_update=True, weight_decay=decay
    ).circuit
    for layer in range(1, 3):
        gap, gap_after = (c.weights[layer] - c.free_feedback[layer - 1] for c in (circuit, after))
        assert relative_error(gap_after, (1 - lr[layer] * decay) ** 8 * gap) < 1e-13


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("feedback", "shared"), [("tied", False), ("free", False), ("free", True)])
@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
def test_continual_ep_meets_ep_as_lr_shrinks(dynamics: str, feedback: str, shared: bool, symmetric: bool) -> None:
    circuit, x, y = random_problem(dynamics=dynamics, feedback=feedback)
    nudge, rule = Nudge(y, 0.1), {"symmetric": symmetric, "shared_update": shared}
    phases = {"free_steps": FREE_STEPS, "nudged_steps": 120}  # as many steps lead back to the free state in between
    expected = reference.ep_step(circuit, x, nudge, accumulate=True, **phases, **rule).gradients
    sizes, errors = (1e-4, 2e-4, 4e-4, 8e-4), []
    for size in sizes:
        lr = (size, size / 2, size / 4)
        after = reference.cep_step(circuit, x, nudge, lr=lr, **phases, **rule).circuit
        moved = zip(after.parameters(), circuit.parameters(), rates(circuit, lr), strict=True)
        changes = [((p - before) / rate).flatten() for p, before, rate in moved]
        errors.append(relative_error(torch.cat(changes), -vector(expected)))
    assert abs(slope(sizes, errors) - 1) < 0.05
    assert 1e-9 < errors[0] < 0.01


@pytest.mark.parametrize("symmetric", [False, True])
def test_accumulated_contrasts_telescope_when_tied_and_only_then(symmetric: bool) -> None:
    for feedback in ("tied", "free"):
        problem = random_problem(feedback=feedback)
        ends, path = (
            ep_vector(problem, Nudge(problem.target, 0.2), symmetric=symmetric, accumulate=accumulate)
            for accumulate in (False, True)
        )
        error = relative_error(path, ends)
        assert error < 1e-12 if feedback == "tied" else error > 1e-3


@pytest.mark.parametrize("beta", [0.2, -0.2])
@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("dynamics", ["prototypical", "energy"])
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_tied_continual_updates_telescope(schedule: str, dynamics: str, times: int, beta: float) -> None:
    """W(t) = W(0) + lr / (beta B) (r_t[l]^T r_t[l-1] - r_0[l]^T r_0[l-1]) exactly, even at 100 times the usual rates,
    where the weights that move during the phase change its states."""
    circuit, x, y = random_problem(dynamics=dynamics, schedule=schedule)
    nudge, lr = Nudge(y, beta), [times * rate for rate in (0.0056, 0.0028, 0.0014)]
    for steps in (1, 2, 15):
        ran = reference.cep_step(circuit, x, nudge, free_steps=FREE_STEPS, nudged_steps=steps, lr=lr)
        end = ran.nudged_states[0]
        change = reference.contrast(circuit, x, ran.free_states, end, ran.free_states, beta)
        expected = reference.moved(circuit, change, lr, 0.0)
        for p, wanted in zip(ran.circuit.parameters(), expected.parameters(), strict=True):
            assert relative_error(p, wanted) < 1e-12
    with_constant_weights = reference.relax(circuit, x, steps, ran.free_states, nudge).states
    assert relative_error(end[-1], with_constant_weights[-1]) > 1e-5 * times


@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_weight_decay_subtracts_lr_times_decay_times_the_parameter(feedback: str) -> None:
    circuit, x, y = random_problem(feedback=feedback)
    lr, decay = (0.3, 0.2, 0.1), 0.05
    plain, decayed = (
        reference.cep_step(circuit, x, Nudge(y, 0.2), free_steps=50, nudged_steps=1, lr=lr, weight_decay=wd).circuit
        for wd in (0.0, decay)
    )
    parameters = plain.parameters(), decayed.parameters(), circuit.parameters()
    for p, with_decay, before, rate in zip(*parameters, rates(circuit, lr), strict=True):
        assert relative_error(with_decay, p - rate * decay * before) < 1e-15


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_readout_learns_once_from_the_loss_gradient_at_the_ends(symmetric: bool) -> None:
    circuit, x, y = random_problem(readout=True)
    lr, nudge = (0.3, 0.2, 0.1), Nudge(y, 0.5, "drive", "cross_entropy")
    ran = reference.cep_step(circuit, x, nudge, free_steps=50, nudged_steps=8, lr=lr, symmetric=symmetric)
    readout = [p.clone().requires_grad_() for p in (circuit.weights[-1], circuit.biases[-1])]
    losses = [F.cross_entropy(F.linear(end[-1], *readout), y) for end in ran.nudged_states]
    assert len(losses) == 1 + symmetric
    gradients = torch.autograd.grad(sum(losses) / len(losses), readout)
    moved = (ran.circuit.weights[-1] - circuit.weights[-1], ran.circuit.biases[-1] - circuit.biases[-1])
    for change, gradient in zip(moved, gradients, strict=True):
        assert relative_error(change, -lr[-1] * gradient) < 1e-12
