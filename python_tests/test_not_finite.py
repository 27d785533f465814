"""What a learning step stores of numbers that are not finite: nothing; and what it says of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from variants import copy_of

import ceprop_cuda as cep
from ceprop_cuda.spec.dynamics import Nudge

BATCH, CLASSES = 7, 5


def dense(**settings: Any) -> tuple[cep.Network, Tensor]:
    return cep.mlp(12, 16, 9, CLASSES, **settings), torch.rand(BATCH, 12)


NETWORKS: dict[str, Callable[[], tuple[cep.Network, Tensor]]] = {
    "tied": dense,
    "free": lambda: dense(feedback="free", activation="hard_sigmoid"),
    "energy": lambda: dense(dynamics="energy", schedule="asynchronous"),
    "readout": lambda: dense(readout="softmax"),
    "convolutions": lambda: (cep.convnet((2, 9, 8), (3, 4), 3, 1, "ma", (CLASSES,)), torch.rand(BATCH, 2, 9, 8)),
}
RULES: dict[str, Callable[[cep.Network, str], cep.EP | cep.CEP]] = {
    "EP": lambda net, backend: cep.EP(net, 10, 5, 0.5, backend=backend),
    "accumulate": lambda net, backend: cep.EP(net, 10, 5, 0.5, backend=backend, accumulate=True),
    "literal": lambda net, backend: cep.CEP(net, 10, 5, 0.5, 0.1, backend=backend, update="literal"),
    "low_rank": lambda net, backend: cep.CEP(net, 10, 5, 0.5, 0.1, backend=backend, update="low_rank"),
    "symmetric": lambda net, backend: cep.CEP(net, 10, 5, 0.5, 0.1, backend=backend, nudging="symmetric"),
}
# What is not finite, and what is said of it.
PLACES: dict[str, tuple[Callable[[cep.Network, Tensor, Tensor], Tensor], str]] = {
    "x": (lambda net, x, target: x, "the inputs hold NaN or infinite values"),
    "target": (lambda net, x, target: target, "the target holds NaN or infinite values"),
    "input weight": (lambda net, x, target: net.weights[0], "weights of connection 0 are not finite"),
    "weight": (lambda net, x, target: net.weights[1], "weights of connection 1 are not finite"),
    "bias": (lambda net, x, target: net.biases[0], "biases of connection 0 are not finite"),
}
VALUES = [math.nan, math.inf, -math.inf]


def learn(rule: cep.EP | cep.CEP, x: Tensor, target: Tensor) -> None:
    rule.step(x, target) if isinstance(rule, cep.CEP) else rule.backward(x, target)


def case(network: str) -> tuple[cep.Network, Tensor, Tensor]:
    net, x = NETWORKS[network]()
    return net, x, F.one_hot(torch.arange(BATCH) % CLASSES, CLASSES).float()


def assert_nothing_is_stored(rule: cep.EP | cep.CEP, x: Tensor, target: Tensor, message: str) -> None:
    before = copy.deepcopy(list(rule.net.parameters()))
    with pytest.raises(cep.Diverged, match=message):
        learn(rule, x, target)
    for p, q in zip(rule.net.parameters(), before, strict=True):
        assert torch.equal(p.view(torch.int32), q.view(torch.int32))  # NaN among them
        assert p.grad is None


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_one_number_that_is_not_finite(network: str, name: str, backend: str, threads: Callable[[int], None]) -> None:
    net, x, target = case(network)
    threads(2)
    for place, message in PLACES.values():
        for value in VALUES:
            given = copy.deepcopy((net, x, target))
            place(*given).data.view(-1)[2] = value
            assert_nothing_is_stored(RULES[name](given[0], backend), *given[1:], message)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("network", NETWORKS)
def test_numbers_of_which_products_are_not_finite(network: str, backend: str) -> None:
    net, x, target = case(network)
    x.view(-1)[0] = 1e38
    for make in RULES.values():
        assert_nothing_is_stored(make(copy.deepcopy(net), backend), x, target, "the inputs hold values up to 1e[+]38")


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_learning_rate_that_is_too_high_is_blamed(network: str, backend: str) -> None:
    net, x, target = case(network)
    rule = cep.CEP(net, 10, 5, 0.5, 1e38, backend=backend)
    assert_nothing_is_stored(rule, x, target, "are not finite .learning rate too high")


def assert_ops_store_nothing(module: Any, network: str) -> None:
    """Whatever of a call is not finite, and again what follows is as if there had been none."""
    net, x, target = case(network)
    phases: dict[str, Any] = {"free_steps": 4, "nudged_steps": 2}
    fine = _run_ops(module, net, x, target, phases)
    at = {1: "drive"}  # where an activation would make a number of an infinite target
    for number in range(2 + len(list(net.parameters()))):
        broken, *given = copy.deepcopy((net, x, target))
        tensor = [*given, *broken.parameters()][number]
        tensor.data.view(-1)[tensor.numel() // 2] = 1e38 if number == 0 else VALUES[number % 3]
        before = copy_of(broken.circuit()).parameters()
        for symmetric in (False, True):
            ep, continual = _run_ops(module, broken, *given, phases | {"symmetric": symmetric}, at.get(number))
            assert (ep.steps.tolist(), continual.steps.tolist()) == ([-1] * (2 + symmetric), [-1] * (2 + 2 * symmetric))
            assert not any(gradient.any() for gradient in ep.gradients.parameters())
            for p, q in zip(continual.circuit.parameters(), before, strict=True):
                assert torch.equal(p.cpu().view(torch.int32), q.view(torch.int32)), number
    for found, wanted in zip(_run_ops(module, net, x, target, phases), fine, strict=True):
        assert found.steps.tolist() == [4, 2]
        assert all(map(torch.equal, found.nudged_states[0], wanted.nudged_states[0]))


@torch.no_grad()
def _run_ops(
    module: Any, net: cep.Network, x: Tensor, target: Tensor, settings: dict[str, Any], at: str | None = None
) -> tuple[Any, Any]:
    nudge = Nudge(target, 0.5, *net.nudging_point(at, None))
    ep = module.ep_step(net.circuit(), x, nudge, **settings)
    rates = [0.1] * len(net.weights)
    return ep, module.cep_step(copy_of(net.circuit()), x, nudge, **settings, lr=rates)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_ops_say_so_by_their_steps(network: str) -> None:
    assert_ops_store_nothing(cep.ops, network)


def test_large_numbers_that_are_finite_are_stored() -> None:
    """Also where a half panel of lanes holds no units, whose memory may hold anything."""
    for units in (1, 3, 10, 17, 33):
        net = cep.mlp(3, units, 2, activation="linear")
        x, target = torch.rand(4, 3) * 1e6, torch.rand(4, 2) * 1e6
        cep.EP(net, 1, 1, 0.5).backward(x, target)
        cep.CEP(net, 1, 1, 0.5, 1e-30).step(x, target)
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())
