"""The comparison of EP with BPTT, step by step, in float64: its gradients against finite differences, its sums against
the rules, its measures against numpy, and the theorem where it holds exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import relative_error
from small_network import X, Y, batch, network
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Circuit
from ceprop_cuda.theorem import Comparison, Match, compare

T, K = 300, 6
# Dynamics that are the gradient of a scalar function, for which the theorem is exact: linear units here, which stay on
# one piece; and tanh in energy dynamics, whose output has no rho' factor and must be linear.
GRADIENT_DYNAMICS: dict[str, dict[str, Any]] = {
    "prototypical": {"activation": "linear"},
    "energy": {"activation": "tanh", "output_activation": "linear", "dynamics": "energy", "dt": 0.3, "clip": False},
    "vector field": {"activation": "linear", "feedback": "free"},
    "readout": {"activation": "linear", "readout": "softmax"},
}


def settling(**settings: Any) -> cep.Network:
    """A network whose steps are contractions; free feedback is a copy of the forward weights."""
    net = network(**settings)
    return shrunk(net)


def shrunk(net: cep.Network) -> cep.Network:
    with torch.no_grad():
        for w in net.weights[1:]:
            w *= 0.5
        if net.free_feedback is not None:
            net.set_angle(0)
    return net


def conv_network(**settings: Any) -> cep.Network:
    return shrunk(cep.convnet((1, 8, 8), (2, 3), 3, pools="ai", fc=(3,), **settings).double())


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1])


def ep(net: cep.Network, beta: float = 1e-6, free_steps: int = T, nudged_steps: int = K, **settings: Any) -> cep.EP:
    return cep.EP(net, free_steps, nudged_steps, beta, accumulate=True, backend="reference", **settings)


def continual(net: cep.Network, lr: float, beta: float = 1e-6, **settings: Any) -> cep.CEP:
    return cep.CEP(net, T, K, beta, lr, backend="reference", **settings)


def all_entries(rule: cep.EP | cep.CEP, x: Tensor, y: Tensor) -> Comparison:
    return compare(rule, x, y, samples=10**6)


def by_name(comparison: Comparison) -> dict[str, Match]:
    return {match.agreement.quantity: match for match in comparison.matches}


def relative_rmse(updates: Tensor, descents: Tensor) -> np.ndarray:
    """Of each column of ``(K, m)``, by the definition in 1905.13633."""
    a, b = updates.numpy(), descents.numpy()
    return np.sqrt(np.mean((a - b) ** 2, 0)) / np.maximum(np.sqrt(np.mean(a**2, 0)), np.sqrt(np.mean(b**2, 0)))


# ---------------------------------------------------------------------------------------------------------------
# Each side on its own


def loss_with(
    net: cep.Network, start: Sequence[Tensor], x: Tensor, y: Tensor, kind: str, step: int, name: str, change: Tensor
) -> float:
    """The loss K steps after ``start`` if ``change`` is added to what is called ``name`` in the last but ``step``-th
    step only: to a copy of a parameter, or to a layer's states after it, in every sample."""
    circuit, states = net.circuit(), list(start)
    letter, index = name[0], int(name[2:-1])
    for t in reversed(range(K)):
        states = reference.step(added(circuit, letter, index, change) if t == step else circuit, x, states)
        if t == step and letter == "s":
            states[index] = states[index] + change
    return reference.loss(reference.logits(circuit, states), net.check_target(circuit, x, y), kind).item()


def added(circuit: Circuit, letter: str, index: int, change: Tensor) -> Circuit:
    """``circuit`` with ``change`` added to its W, b or V of this index."""
    field, index = {"W": ("weights", index), "b": ("biases", index), "V": ("free_feedback", index - 1)}.get(
        letter, ("", 0)
    )
    if not field:
        return circuit
    group = list(getattr(circuit, field))
    group[index] = group[index] + change
    return replace(circuit, **{field: group})


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: network(), "mse"),
        (lambda: network(feedback="free", dynamics="energy", clip=False, bias=False), "mse"),
        (lambda: network(readout="softmax", activation="tanh"), "cross_entropy"),
        (lambda: network(schedule="asynchronous"), "mse"),
        (lambda: cep.convnet((1, 6, 6), (2,), 3, pools="m", fc=(3,)).double(), "mse"),
    ],
    ids=["tied", "free energy", "readout", "asynchronous", "convolution"],
)
@torch.no_grad()
def test_each_steps_gradient_is_that_of_the_copy_it_used(make: Any, loss: str) -> None:
    """By central differences of the loss, one number of one copy at a time; far from a fixed point, where the steps
    differ."""
    net = make()
    x, y = (torch.rand(3, *net.input_shape, dtype=torch.float64), torch.tensor([0, 2, 1]))
    rule = ep(net, beta=0.1, free_steps=K + 1)
    start, size = net.relax(x, 1, backend="reference"), 1e-5
    for name, match in by_name(all_entries(rule, x, y)).items():
        shape = match.rmse.shape
        for step in (0, 1, K - 1):
            numeric = torch.zeros(shape, dtype=torch.float64)
            for place in np.ndindex(*shape):
                change = torch.zeros(shape, dtype=torch.float64)
                change[place] = size
                ends = (loss_with(net, start, x, y, loss, step, name, sign * change) for sign in (1, -1))
                numeric[place] = (next(ends) - next(ends)) / (2 * size)
            found = -match.descents[step].view(shape)
            assert (found - numeric).norm() <= 1e-6 * numeric.norm() + 1e-10, (name, step)


@pytest.mark.parametrize(
    ("feedback", "settings"),
    [
        ("tied", {}),
        ("tied", {"nudging": "symmetric"}),
        ("free", {}),
        ("free", {"accumulate": True}),
        ("free", {"accumulate": True, "nudging": "symmetric"}),
        ("free", {"shared_update": True, "nudging": "symmetric"}),
    ],
    ids=str,
)
def test_updates_and_gradients_add_up_to_what_ep_and_bptt_find(feedback: str, settings: dict[str, Any]) -> None:
    net, (x, y) = network(feedback=feedback), batch()
    rule = cep.EP(net, 20, 5, 0.2, backend="reference", **settings)
    found = compare(rule, x, y)
    assert all(p.grad is None for p in net.parameters())
    out = rule.backward(x, y)
    assert found.loss == pytest.approx(out.loss.item(), rel=1e-12)
    for match, p in zip(found.parameters, net.circuit().parameters(), strict=True):
        assert relative_error(match.summed_updates, -p.grad) < 1e-10
    starts, beta = (out.nudged_minus_states, 0.4) if "nudging" in settings else (out.free_states, 0.2)
    for match, start, end in zip(found.neurons, starts, out.nudged_states, strict=True):
        assert relative_error(match.summed_updates, (end - start).mean(0) / beta) < 1e-10
    net.zero_grad()
    cep.BPTT(net, 20, 5, backend="reference").backward(x, y)
    for match, p in zip(found.parameters, net.circuit().parameters(), strict=True):
        assert relative_error(match.summed_descents, -p.grad) < 1e-12


@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_continual_updates_add_up_to_the_movement_of_the_parameters(feedback: str) -> None:
    net, (x, y) = network(feedback=feedback), batch()
    rule = cep.CEP(net, 20, 5, 0.2, (0.5, 0.3, 0.2), backend="reference")
    before = [p.detach().clone() for p in net.circuit().parameters()]
    found = compare(rule, x, y)
    assert all(map(torch.equal, before, net.circuit().parameters()))
    rule.step(x, y)
    rates = [*rule.lr, *rule.lr, *rule.lr[1:]]
    for match, p, old, rate in zip(found.parameters, net.circuit().parameters(), before, rates, strict=False):
        assert relative_error(rate * match.summed_updates, p.detach() - old) < 1e-10


# ---------------------------------------------------------------------------------------------------------------
# The theorem


@pytest.mark.parametrize("name", GRADIENT_DYNAMICS)
def test_updates_are_the_gradients_of_each_step(name: str) -> None:
    """Of every layer and parameter, at beta = 1e-6, where rounding and the second order are both near 1e-7."""
    net, (x, y) = settling(**GRADIENT_DYNAMICS[name]), batch()
    found = all_entries(ep(net), x, y)
    assert found.moved < 1e-15
    layers = len(net.layers)
    assert [match.agreement.quantity[0] for match in found.matches] == (
        ["s"] * layers + ["W"] * layers + ["b"] * layers + ["V"] * (layers - 1 if net.free_feedback is not None else 0)
    )
    for match in found.matches:
        assert relative_error(match.updates, match.descents) < 1e-5, match.agreement
        assert match.agreement.rmse < 1e-4
        assert match.agreement.angle < 1e-3
        assert match.agreement.sign_agreement == 1
    assert found.angle < 1e-3


def test_updates_are_the_gradients_in_a_convnet() -> None:
    net, (x, y) = conv_network(activation="linear"), images()
    found = all_entries(ep(net), x, y)
    assert [tuple(match.rmse.shape) for match in found.neurons] == [(2, 3, 3), (3, 1, 1), (3,)]
    for match in found.matches:
        assert relative_error(match.updates, match.descents) < 1e-5, match.agreement


@pytest.mark.parametrize(("nudging", "order"), [("positive", 1), ("symmetric", 2)])
def test_the_error_falls_with_beta(nudging: str, order: int) -> None:
    net, (x, y) = settling(**GRADIENT_DYNAMICS["energy"]), batch()
    rules = [ep(net, beta, nudging=nudging) for beta in (0.01, 0.005, 0.0025)]
    errors = [by_name(compare(rule, x, y))["W[0]"].agreement.rmse for rule in rules]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.05)


def test_another_index_sign_or_scale_would_be_seen() -> None:
    net, (x, y) = settling(**GRADIENT_DYNAMICS["energy"]), batch()
    for match in all_entries(ep(net), x, y).matches:
        updates, descents = match.updates, match.descents
        assert relative_rmse(updates, descents).max() < 1e-4
        wrong = {
            "a step late": (updates[1:], descents[:-1]),
            "a step early": (updates[:-1], descents[1:]),
            "sign": (updates, -descents),
            "no dt": (updates, descents * 0.3),
            "not the mean over the batch": (updates, descents / 3),
        }
        for name, (a, b) in wrong.items():
            assert relative_rmse(a, b).min() > 0.1, (match.agreement.quantity, name)


def test_prototypical_units_that_bend_follow_the_gradient_of_their_drive() -> None:
    """Synchronous steps s <- rho(a) with the nudge inside rho: the parameters' updates are exact, too, while neurons
    have the gradient with respect to their drive, not their state."""
    net, (x, y) = settling(activation="tanh"), batch()
    found = all_entries(ep(net, nudge_at="drive"), x, y)
    for match in found.parameters:
        assert relative_error(match.updates, match.descents) < 1e-5
    assert found.neurons[0].agreement.rmse > 0.01


@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_continual_updates_are_those_of_ep_as_lr_vanishes(feedback: str) -> None:
    net, (x, y) = network(feedback=feedback), batch()
    expected = all_entries(ep(net, 0.1), x, y)
    still = all_entries(continual(net, 0.0, 0.1), x, y)
    for a, b in zip(still.matches, expected.matches, strict=True):
        assert torch.equal(a.updates, b.updates)
        assert torch.equal(a.descents, b.descents)
    gaps = []
    for lr in (0.001, 0.002):
        found = all_entries(continual(net, lr, 0.1), x, y)
        pairs = zip(found.matches, expected.matches, strict=True)
        gaps.append([relative_error(a.updates, b.updates) for a, b in pairs])
        assert all(torch.equal(a.descents, b.descents) for a, b in zip(found.matches, expected.matches, strict=True))
    changed = [pair for pair in zip(*gaps, strict=True) if pair[1] > 1e-9]
    assert len(changed) > len(gaps[0]) / 2
    assert all(large / small == pytest.approx(2, rel=0.05) for small, large in changed)


def test_a_vector_field_leaves_the_gradient_with_its_angle() -> None:
    net, (x, y) = settling(**GRADIENT_DYNAMICS["vector field"]), batch()
    aligned = compare(continual(net, 1e-13), x, y)
    assert aligned.angle < 1e-3
    net.set_angle(60)
    turned = compare(continual(net, 1e-13), x, y)
    assert turned.angle > 1
    # The nudge has not yet come back through the feedback in the first step of the output units.
    output, drifting = (by_name(turned)[name] for name in ("s[2]", "s[0]"))
    assert relative_error(output.updates[0], output.descents[0]) < 1e-5
    assert drifting.agreement.rmse > 0.1


# ---------------------------------------------------------------------------------------------------------------
# Measures


def test_measures_are_what_they_say() -> None:
    net, (x, y) = network(feedback="free"), batch()
    for match in all_entries(cep.EP(net, 20, 5, 0.5, backend="reference"), x, y).matches:
        a, b, found = match.updates, match.descents, match.agreement
        assert torch.equal(match.sampled, torch.arange(match.rmse.numel()))
        rmse = relative_rmse(a, b)
        np.testing.assert_allclose(match.rmse.flatten().numpy(), rmse, rtol=1e-12)
        assert found.rmse == pytest.approx(rmse.mean())
        assert found.rmse_median == pytest.approx(np.sort(rmse)[(len(rmse) - 1) // 2])
        has_gradient = b.numpy() != 0
        assert not has_gradient.all() or match.agreement.quantity in ("s[2]", "W[2]", "b[2]")
        opposed = np.sign(a.numpy()) != np.sign(b.numpy())
        assert found.sign_disagreement == pytest.approx(opposed[has_gradient].mean())
        sums = a.sum(0).numpy(), b.sum(0).numpy()
        assert found.sign_agreement == pytest.approx(np.mean(np.sign(sums[0]) == np.sign(sums[1])))
        cosine = sums[0] @ sums[1] / np.linalg.norm(sums[0]) / np.linalg.norm(sums[1])
        assert found.angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)
        np.testing.assert_allclose(match.summed_updates.flatten().numpy(), sums[0], rtol=1e-12, atol=1e-16)


def test_the_angle_is_that_of_all_parameters_as_one_vector() -> None:
    net, (x, y) = network(), batch()
    rule = cep.EP(net, 20, 5, 0.5, backend="reference")
    found = compare(rule, x, y)
    rule.backward(x, y)
    ours = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    cep.BPTT(net, 20, 5, backend="reference").backward(x, y)
    exact = torch.cat([p.grad.flatten() for p in net.parameters()])
    cosine = torch.nn.functional.cosine_similarity(ours, exact, dim=0)
    assert found.angle == pytest.approx(torch.rad2deg(torch.acos(cosine)).item(), rel=1e-6)


def test_silent_synapses_have_no_error_and_do_not_count() -> None:
    net, (x, y) = network(), batch()
    x[:, 2] = 0  # as dark pixels are
    match = by_name(all_entries(ep(net, 0.1), x, y))["W[0]"]
    assert match.rmse[:, 2].isnan().all()
    others = match.rmse[:, [0, 1, 3, 4, 5]]
    assert match.agreement.rmse == pytest.approx(others.mean().item())
    assert 0 < match.agreement.sign_agreement <= 1


def test_samples_are_some_of_all() -> None:
    net, (x, y) = network(), batch()
    some, every = compare(ep(net, 0.1), x, y, samples=4), all_entries(ep(net, 0.1), x, y)
    for a, b in zip(some.matches, every.matches, strict=True):
        assert len(a.sampled) == min(4, b.rmse.numel())
        assert torch.equal(a.updates, b.updates[:, a.sampled])
        assert torch.equal(a.descents, b.descents[:, a.sampled])
        assert a.agreement == b.agreement


def test_what_has_not_settled_shows() -> None:
    net, (x, y) = network(), batch()
    states = net.relax(x, 12, backend="reference")
    largest = 0.0
    for _ in range(K):
        before, states = states, net.relax(x, 1, states=states, backend="reference")
        largest = max(largest, *((b - a).abs().max().item() for a, b in zip(before, states, strict=True)))
    found = compare(ep(net, 0.1, free_steps=12 + K), x, y)
    assert found.moved == pytest.approx(largest)
    assert found.moved > 1e-9


def test_the_fused_free_phase_gives_the_same() -> None:
    net, (x, y) = network(), batch()
    fused, slow = (compare(cep.EP(net, 40, 5, 0.1, backend=backend), x, y) for backend in ("fused", "reference"))
    for a, b in zip(fused.matches, slow.matches, strict=True):
        assert relative_error(a.updates, b.updates) < 1e-9
        assert relative_error(a.descents, b.descents) < 1e-9


@pytest.mark.cuda
def test_on_a_gpu_it_is_the_same() -> None:
    net, (x, y) = settling(), batch()
    expected = compare(ep(net, 0.1), x, y)
    found = compare(cep.EP(net.to("cuda"), T, K, 0.1, accumulate=True), x.to("cuda"), y.to("cuda"))
    for a, b in zip(found.matches, expected.matches, strict=True):
        assert relative_error(a.updates.cpu(), b.updates) < 1e-9
        assert relative_error(a.descents.cpu(), b.descents) < 1e-9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: compare(cep.BPTT(net, 5, 5), X, Y), TypeError, "rule must be an EP or CEP.*got BPTT"),
        (lambda net: compare(continual(net, 0.1, nudging="symmetric"), X, Y), ValueError, "must not have nudging="),
        (lambda net: compare(ep(net, free_steps=5), X, Y), ValueError, "got free_steps=5 and nudged_steps=6"),
        (lambda net: compare(ep(net), X, Y, samples=0), ValueError, "samples must be an int >= 1"),
        (lambda net: compare(ep(net), X[:, :5], Y), ValueError, "x must be"),
        (lambda net: compare(ep(net), X, Y + 3), ValueError, "class indices must lie in 0 .. 2"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(network())
