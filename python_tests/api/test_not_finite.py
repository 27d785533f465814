"""What a learning step stores of numbers that are not finite: nothing; and what it says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from not_finite_numbers import NETWORKS, VALUES, assert_ops_store_nothing, case
from torch import Tensor

import ceprop_cuda as cep

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


def learn(rule: cep.EP | cep.CEP, x: Tensor, target: Tensor) -> None:
    rule.step(x, target) if isinstance(rule, cep.CEP) else rule.backward(x, target)


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
