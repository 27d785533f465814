"""The public API of the rules, on the reference: what EP, continual EP and BPTT take, refuse, return and change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import relative_error
from small_network import X, Y, batch, network
from torch import Tensor, nn

import ceprop_cuda as cep
from ceprop_cuda.spec import reference


def ep_rule(net: cep.Network, **settings: Any) -> cep.EP:
    return cep.EP(net, **{"free_steps": 20, "nudged_steps": 5, "beta": 0.2, "backend": "reference", **settings})


def cep_rule(net: cep.Network, **settings: Any) -> cep.CEP:
    phases = {"free_steps": 20, "nudged_steps": 5, "beta": 0.2, "lr": 0.1}
    return cep.CEP(net, **{**phases, "backend": "reference", **settings})


def bptt_rule(net: cep.Network, **settings: Any) -> cep.BPTT:
    return cep.BPTT(net, **{"free_steps": 20, "unrolled_steps": 5, "backend": "reference", **settings})


def values(net: cep.Network) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: ep_rule(network(readout="softmax"), loss="mse"), "loss of a network with a readout"),
        (lambda net: ep_rule(network(readout="softmax"), nudge_at="state"), "nudge_at of a network"),
        (lambda net: ep_rule(net).backward(X, Y + 3), "class indices"),
        (lambda net: cep_rule(net).step(X[:, :5], Y), "x must be"),
        (lambda net: cep.BPTT(net, 5, 5).backward(X, Y[:2]), "target must be"),
        (lambda net: ep_rule(net, beta=0), "beta must be a finite number other than 0, got 0"),
        (lambda net: ep_rule(net, beta=math.nan), "beta must be .* got nan"),
        (lambda net: ep_rule(net, beta=-math.inf), "beta must be .* got -inf"),
        (lambda net: ep_rule(net, nudged_steps=0), "nudged_steps must be an int >= 1"),
        (lambda net: ep_rule(net, free_steps=True), "free_steps must be an int"),
        (lambda net: ep_rule(net, nudging="negative"), "nudging must be one of"),
        (lambda net: ep_rule(net, accumulate="yes"), "accumulate must be"),
        (lambda net: ep_rule(net, shared_update=True), "shared_update=True needs .*'free'"),
        (lambda net: ep_rule(net, backend="cuda"), "backend must be one of"),
        (lambda net: ep_rule(net, loss="cross_entropy"), "output_activation='linear' or readout"),
        (lambda net: cep_rule(net, lr=(0.1, 0.1)), "lr must hold 3 rates, input side first, got 2"),
        (lambda net: cep_rule(net, lr=(0.1, -0.1, 0)), r"lr\[1\] must be .*>= 0, got -0.1"),
        (lambda net: cep_rule(net, lr=math.nan), r"lr\[0\] must be"),
        (lambda net: cep_rule(net, weight_decay=-1.0), "weight_decay must be"),
        (lambda net: cep.BPTT(net, 5, 6), "unrolled_steps must be at most free_steps=5, got 6"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[cep.Network], object], message: str) -> None:
    """... and changes nothing."""
    net = network()
    before = values(net)
    with pytest.raises(ValueError, match=message):
        call(net)
    assert all(map(torch.equal, values(net), before))
    assert all(p.grad is None for p in net.parameters())


def test_a_readout_goes_with_cross_entropy_at_the_drive() -> None:
    rule = ep_rule(network(readout="softmax"))
    assert (rule.nudge_at, rule.loss) == ("drive", "cross_entropy")


@pytest.mark.parametrize(
    "call",
    [
        lambda net: cep.EP(net, 3, 2, 0.1, "positive"),
        lambda net: cep.CEP(net, 3, 2, 0.1, 0.1, "positive"),
        lambda net: cep.BPTT(net, 3, 2, "mse"),
        lambda net: net.relax(X, 3, None),
        lambda net: net.settle(X, 3, None),
    ],
)
def test_settings_are_said_by_name(call: Callable[[cep.Network], object]) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        call(network())


@pytest.mark.parametrize("kind", [ep_rule, cep_rule, bptt_rule])
def test_a_rule_leaves_the_networks_own_steps_alone(kind: Callable[..., Any]) -> None:
    net, (x, y) = network(free_steps=4), batch()
    before = values(net)
    rule = kind(net, free_steps=20)
    assert (net.free_steps, rule.free_steps) == (4, 20)
    assert all(map(torch.equal, values(net), before))
    assert torch.equal(rule.predict(x, y).output, net.relax(x, 20, backend="reference")[-1])
    assert torch.equal(net(x), net.relax(x, 4)[-1])
    assert rule.predict(x, y).steps.tolist() == [20]


def test_an_optimizer_on_the_original_model_trains_the_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rule = ep_rule(cep.Network(model, (6,)))
    x, y = batch()
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        losses.append(rule.backward(x, y).loss.item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_ep_reports_what_the_phases_were() -> None:
    net, (x, y) = network(), batch()
    free = net.relax(x, 20, backend="reference")
    ends = [net.relax(x, 5, states=free, target=y, beta=beta, backend="reference") for beta in (0.2, -0.2)]
    for nudging in ("positive", "symmetric"):
        out = ep_rule(net, nudging=nudging).backward(x, y)
        assert all(map(torch.equal, out.free_states, free))
        assert torch.equal(out.output, free[-1])
        assert out.loss.item() == pytest.approx(F.mse_loss(free[-1], F.one_hot(y, 3).double()).item() * 3 / 2)
        assert all(map(torch.equal, out.nudged_states, ends[0]))
        assert len(out.nudged_minus_states) == (3 if nudging == "symmetric" else 0)
        assert all(map(torch.equal, out.nudged_minus_states, ends[1]))


@pytest.mark.parametrize("rule", [ep_rule, cep_rule])
def test_the_loss_is_that_of_the_free_phase_before_the_update(rule: Callable[..., cep.EP | cep.CEP]) -> None:
    net, (x, y) = network(readout="softmax"), batch()
    trained = rule(net)
    predicted = trained.predict(x, y)
    logits = net.model[-1](net.relax(x, 20, backend="reference")[-1]).detach()
    out = trained.backward(x, y) if isinstance(trained, cep.EP) else trained.step(x, y)
    for result in (predicted, out):
        assert relative_error(result.output, logits) < 1e-12
        assert relative_error(result.loss, F.cross_entropy(logits, y)) < 1e-12
    assert predicted.nudged_states == []


def test_backward_adds_to_the_gradients() -> None:
    net, (x, y) = network(feedback="free"), batch()
    rule = ep_rule(net)
    rule.backward(x, y)
    once = [p.grad.clone() for p in net.parameters()]
    rule.backward(x, y)
    for p, gradient in zip(net.parameters(), once, strict=True):
        assert gradient.abs().max() > 0
        assert torch.equal(p.grad, 2 * gradient)


@pytest.mark.parametrize("rule", [ep_rule, lambda net: cep.BPTT(net, 20, 5, backend="reference")])
def test_frozen_parameters_get_no_gradient(rule: Callable[[cep.Network], cep.EP | cep.BPTT]) -> None:
    net, (x, y) = network(feedback="free"), batch()
    frozen = [net.weights[1], net.biases[0], net.feedback[2]]
    for p in frozen:
        p.requires_grad_(False)
    rule(net).backward(x, y)
    assert [p.grad is None for p in net.parameters()] == [any(p is q for q in frozen) for p in net.parameters()]


@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_layers_without_bias_are_layers_with_a_bias_of_zero(feedback: str) -> None:
    bare, zero, (x, y) = network(bias=False, feedback=feedback), network(feedback=feedback), batch()
    with torch.no_grad():
        for b in zero.biases:
            b.zero_()
    zero.load_state_dict(bare.state_dict(), strict=False)
    for net in (bare, zero):
        ep_rule(net).backward(x, y)
    gradients = {name: p.grad for name, p in zero.named_parameters()}
    assert all(torch.equal(p.grad, gradients[name]) for name, p in bare.named_parameters())
    for net in (bare, zero):
        cep_rule(net, nudged_steps=1).step(x, y)
    moved = zero.state_dict()
    assert all(torch.equal(p, moved[name]) for name, p in bare.named_parameters())


def test_random_sign_is_a_fair_coin_from_torchs_generator() -> None:
    net, (x, y) = network(), batch()

    def end_and_gradient(rule: cep.EP) -> tuple[Tensor, Tensor]:
        net.zero_grad()
        return rule.backward(x, y).nudged_states[-1], net.weights[0].grad

    by_beta = {beta: end_and_gradient(ep_rule(net, beta=beta)) for beta in (0.2, -0.2)}

    def draws() -> list[float]:
        torch.manual_seed(5)
        seen = []
        for _ in range(200):
            end, gradient = end_and_gradient(ep_rule(net, nudging="random_sign"))
            (beta,) = (beta for beta, (end_of_beta, _) in by_beta.items() if torch.equal(end, end_of_beta))
            assert torch.equal(gradient, by_beta[beta][1])  # over the beta that was drawn
            seen.append(beta)
        return seen

    drawn = draws()
    assert 70 < drawn.count(0.2) < 130  # four standard deviations
    assert drawn == draws()


def test_continual_ep_moves_the_parameters_in_place_at_the_rate_of_their_connection() -> None:
    net, (x, y) = network(feedback="free"), batch()
    before, places = values(net), [p.data_ptr() for p in net.parameters()]
    cep_rule(net, lr=(0.1, 0.0, 0.1)).step(x, y)
    names = [name for (name, p), value in zip(net.named_parameters(), before, strict=True) if torch.equal(p, value)]
    assert names == ["model.2.weight", "model.2.bias", "free_feedback.0"]
    assert places == [p.data_ptr() for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "loss"),
    [({}, "mse"), ({"feedback": "free", "bias": False}, "mse"), ({"readout": "softmax"}, "cross_entropy")],
)
def test_bptt_is_autograd_through_relax(settings: dict[str, Any], loss: str) -> None:
    net, (x, y) = network(**settings), batch()
    start = [s.detach() for s in net.relax(x, 15, backend="reference")]
    output = net.relax(x, 5, states=start, backend="reference")[-1]
    if loss == "mse":
        expected = F.mse_loss(output, F.one_hot(y, 3).double()) * 3 / 2
    else:
        expected = F.cross_entropy(net.model[-1](output), y)
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    out = cep.BPTT(net, 20, 5, backend="reference").backward(x, y)
    assert relative_error(out.loss, expected.detach()) < 1e-12
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        assert relative_error(p.grad, gradient) < 1e-12


NUDGE_SETTINGS = [{"beta": -0.3}, {"nudge_at": "drive"}, {"loss": "cross_entropy"}, {"nudging": "symmetric"}]


def as_the_reference_takes_them(y: Tensor, settings: dict[str, Any]) -> tuple[reference.Nudge, dict[str, Any]]:
    """The nudge, and the other keyword arguments, that mean ``settings`` of a rule."""
    d = {"beta": 0.2, "nudge_at": "state", "loss": "mse", "nudging": "positive", **settings}
    nudge = reference.Nudge(F.one_hot(y, 3).double(), d.pop("beta"), d.pop("nudge_at"), d.pop("loss"))
    return nudge, {"free_steps": 20, "nudged_steps": 5, "symmetric": d.pop("nudging") == "symmetric", **d}


@pytest.mark.parametrize("settings", [*NUDGE_SETTINGS, {"accumulate": True}, {"shared_update": True}])
def test_ep_does_what_its_settings_say(settings: dict[str, Any]) -> None:
    net, (x, y) = network(feedback="free", output_activation="linear" if "loss" in settings else None), batch()
    nudge, others = as_the_reference_takes_them(y, settings)
    expected = reference.ep_step(net.circuit(), x, nudge, **others).gradients
    ep_rule(net, **settings).backward(x, y)
    for p, gradient in zip(net.circuit().parameters(), expected.parameters(), strict=True):
        assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("settings", [*NUDGE_SETTINGS, {"weight_decay": 0.5}, {"shared_update": True}])
def test_continual_ep_does_what_its_settings_say(settings: dict[str, Any]) -> None:
    net, (x, y) = network(feedback="free", output_activation="linear" if "loss" in settings else None), batch()
    nudge, others = as_the_reference_takes_them(y, settings)
    expected = reference.cep_step(net.circuit(), x, nudge, lr=[0.1] * 3, **others).circuit
    cep_rule(net, **settings).step(x, y)
    assert all(map(torch.equal, net.circuit().parameters(), expected.parameters()))
