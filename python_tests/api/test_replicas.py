"""Networks that learn together: each as its rule alone would make it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_network import network
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda.training import Learned, SomeDiverged

NETWORKS, SAMPLES, BATCH, COUNT = 3, 20, 4, 6
BACKENDS = ["auto", "reference"]

RULES: dict[str, Callable[..., cep.EP | cep.CEP]] = {
    "EP": lambda net, **settings: cep.EP(net, 6, 4, **{"beta": 0.4, "lr": 0.1, **settings}),
    "CEP": lambda net, **settings: cep.CEP(net, 6, 4, **{"beta": 0.4, "lr": 0.1, **settings}),
}
OWN: dict[str, list[dict[str, Any]]] = {
    "EP": [{"momentum": 0.9}, {"beta": 0.2, "weight_decay": 0.1}, {"lr": (0.2, 0.1, 0.0)}],
    "CEP": [{}, {"beta": 0.2, "weight_decay": 0.1}, {"lr": (0.2, 0.1, 0.0)}],
}


def rules_of(name: str, **settings: Any) -> list[cep.EP | cep.CEP]:
    """Each on a network of its own, with settings of its own."""
    torch.manual_seed(0)
    return [RULES[name](network(), **own, **settings) for own in OWN[name]]


def data() -> tuple[Tensor, Tensor, Tensor]:
    orders = torch.randint(SAMPLES, (NETWORKS, COUNT, BATCH))
    return torch.rand(SAMPLES, 6, dtype=torch.float64), torch.randint(3, (SAMPLES,)), orders


def assert_same(a: cep.Network, b: cep.Network) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nudging", ["positive", "symmetric"])
@pytest.mark.parametrize("name", RULES)
def test_each_is_as_alone(name: str, nudging: str, backend: str, threads: Callable[[int], None]) -> None:
    for count in (1, 2):
        threads(count)
        alone, together = (rules_of(name, nudging=nudging, backend=backend) for _ in range(2))
        x, y, orders = data()
        found = cep.Replicas(together).learn(x, y, orders)
        for r, rule in enumerate(alone):
            learned = rule.learn(x, y, orders[r])
            assert_same(rule.net, together[r].net)
            for field in ("loss", "wrong", "steps"):
                assert torch.equal(getattr(learned, field), getattr(found[r], field))
            for a, b in zip(learned.nudged_states, found[r].nudged_states, strict=True):
                assert torch.equal(a, b)


def test_rates_and_signs_of_each() -> None:
    alone, together = rules_of("CEP", nudging="random_sign"), rules_of("CEP", nudging="random_sign")
    x, y, orders = data()
    rates, signs = torch.rand(NETWORKS, COUNT, 3) / 10, 1 - 2 * torch.randint(2, (NETWORKS, COUNT))
    cep.Replicas(together).learn(x, y, orders, rates=rates, signs=signs)
    for r, rule in enumerate(alone):
        rule.learn(x, y, orders[r], rates=rates[r], signs=signs[r])
        assert_same(rule.net, together[r].net)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_that_diverges_stops_alone(backend: str) -> None:
    alone, together = rules_of("CEP", backend=backend), rules_of("CEP", backend=backend)
    x, y, orders = data()
    x[0] = torch.nan
    orders[orders == 0] = 1
    orders[1, 3, 2] = 0
    with pytest.raises(SomeDiverged, match=r"^network 1: batch 4 of this call: the inputs hold NaN") as caught:
        cep.Replicas(together).learn(x, y, orders)
    assert [isinstance(of, Learned) for of in caught.value.found] == [True, False, True]
    for r, rule in enumerate(alone):
        rule.learn(x, y, orders[r, : 3 if r == 1 else COUNT])
        assert_same(rule.net, together[r].net)


def test_rules_that_do_not_go_together() -> None:
    rule = RULES["CEP"](network())
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([], ValueError, "at least one rule"),
        (rule, TypeError, "rules must be a list"),
        ([rule, cep.BPTT(network(), 6, 4)], TypeError, "rules must be a list of EP rules with lr=, or of CEP rules"),
        ([rule, RULES["EP"](network())], TypeError, "rules must be of one kind, got CEP and EP in places 0 and 1"),
        (
            [rule, cep.CEP(network(), 7, 4, 0.4, 0.1)],
            ValueError,
            "free_steps must be the same in all rules, got 6 and 7",
        ),
        ([rule, RULES["CEP"](network(), nudging="symmetric")], ValueError, "nudging must be the same in all rules"),
        ([rule, RULES["CEP"](network().float())], ValueError, "must have the same layers, dynamics, dtype and device"),
        ([rule, RULES["CEP"](network(feedback="free"))], ValueError, "must have the same layers"),
        ([rule, rule], ValueError, "rules 0 and 1 must not share parameters"),
        ([rule, RULES["CEP"](copy.copy(rule.net))], ValueError, "must not share parameters"),
    ]
    for rules, error, message in wrong:
        with pytest.raises(error, match=re.escape(message)):
            cep.Replicas(rules)
    replicas = cep.Replicas([rule, RULES["CEP"](network())])
    x, y, orders = data()
    with pytest.raises(ValueError, match=r"order must be \(2, N, B\) int64.*got \(3, 6, 4\)"):
        replicas.learn(x, y, orders)
    rule.free_steps = 9
    with pytest.raises(ValueError, match="free_steps must be the same in all rules, got 9 and 6"):
        replicas.learn(x, y, orders[:2])
    with pytest.raises(ValueError, match="EP moves no parameters without lr="):
        cep.Replicas([cep.EP(network(), 6, 4, 0.4)]).learn(x, y, orders[:1])
