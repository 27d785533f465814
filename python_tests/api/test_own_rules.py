"""Rules are an open set: what a class derived from Rule has to say, and what then works with it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from small_network import batch, network
from torch import Tensor
from training_runs import fit, without_seconds

import ceprop_cuda as cep
from ceprop_cuda.records import StepResult
from ceprop_cuda.spec.reference import PerParameter
from ceprop_cuda.theorem import compare
from ceprop_cuda.training import NudgedRule, Work, add_to_grads, setting
from ceprop_cuda.training.setting import flag, number


class DeltaRule(cep.Rule):
    """Only the last connection learns, from the error of the output units at the free state."""

    gain: float = setting(number(lambda value: value > 0, "a finite number > 0"), default=1.0)
    only_bias: bool = setting(flag, default=False, decides=False)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        circuit = self.circuit_to_train()
        out = self.predict(x, y)
        error = self.gain * (out.output - out.target) / len(x)
        gradients = [torch.zeros_like(p) for p in circuit.parameters()]
        last = len(circuit.weights) - 1
        gradients[last] = error.T @ out.free_states[-2] * (not self.only_bias)
        gradients[2 * last + 1] = error.sum(0)
        add_to_grads(circuit, PerParameter(gradients[: last + 1], [*gradients[last + 1 :]], []))
        return out


class MovingDeltaRule(DeltaRule):
    """The same, as a rule that moves the parameters itself and has no optimizer."""

    moves_parameters = True

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> StepResult:
        self.net.zero_grad()
        out = self.backward(x, y)
        for p in self.net.parameters():
            assert p.grad is not None
            p -= 0.1 * p.grad
        return out


def delta_trainer(**settings: Any) -> cep.Trainer:
    torch.manual_seed(11)
    net = cep.mlp(12, 8, 3)
    return cep.Trainer(DeltaRule(net, 12, **settings), torch.optim.SGD(net.parameters(), lr=0.1))


def moving_trainer() -> cep.Trainer:
    torch.manual_seed(11)
    return cep.Trainer(MovingDeltaRule(cep.mlp(12, 8, 3), 12))


def test_its_settings_are_those_of_any_rule() -> None:
    net = network()
    assert list(inspect.signature(DeltaRule).parameters) == [
        "net",
        "free_steps",
        "loss",
        "backend",
        "engine",
        "gain",
        "only_bias",
    ]
    rule = DeltaRule(net, 12, gain=2)
    assert repr(rule) == "DeltaRule(free_steps=12, loss='mse', gain=2.0)"
    with pytest.raises(ValueError, match="gain must be a finite number > 0, got 0"):
        DeltaRule(net, 12, gain=0)
    rule.gain = -1.0
    with pytest.raises(ValueError, match=r"gain must be a finite number > 0, got -1\.0"):
        rule.backward(*batch())
    assert rule.gain == 2.0
    with pytest.raises(TypeError, match="DeltaRule: got an unexpected keyword argument 'rate'; it takes "):
        DeltaRule(net, 12, rate=1.0)  # type: ignore[call-arg]


def test_a_trainer_trains_by_it_and_resumes_its_runs(tmp_path: Path) -> None:
    expected = fit(delta_trainer(), epochs=3)
    assert expected[-1]["test_error"] < expected[0]["test_error"] or expected[-1]["test_error"] == 0
    fit(delta_trainer(), tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"rule\['gain'\] is 0\.5, but the run to resume has 1\.0"):
        fit(delta_trainer(gain=0.5), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"rule\['name'\] is 'MovingDeltaRule', but .* has 'DeltaRule'"):
        fit(moving_trainer(), tmp_path, resume=True)
    again = fit(delta_trainer(only_bias=False), tmp_path, epochs=3, resume=True)
    assert without_seconds(again) == without_seconds(expected)


def test_a_rule_may_move_the_parameters_itself() -> None:
    by_optimizer, by_itself = fit(delta_trainer(), epochs=2), fit(moving_trainer(), epochs=2)
    assert without_seconds(by_itself) == without_seconds(by_optimizer)
    with pytest.raises(ValueError, match="MovingDeltaRule moves the weights itself"):
        cep.Trainer(moving_trainer().rule, torch.optim.SGD(network().parameters(), lr=0.1))


def test_what_asks_for_a_nudged_phase_says_so() -> None:
    net, (x, y) = network(), batch()
    rule = DeltaRule(net, 12)
    with pytest.raises(TypeError, match="rule must be an EP or CEP, which has a nudged phase, got DeltaRule"):
        compare(rule, x, y)
    with pytest.raises(TypeError, match="rule must be an EP or CEP, got DeltaRule"):
        cep.plan(net, rule, 3)  # type: ignore[arg-type]


def test_a_rule_that_cannot_learn_says_so() -> None:
    rule = cep.Rule(network(), 12)
    for call in (rule.backward, rule.step):
        with pytest.raises(NotImplementedError, match=r"Rule has no (backward|step)\(\)"):
            call(*batch())


class Slowed(NudgedRule):
    """Nothing but what a nudged rule must say."""

    def work(self) -> Work:
        return super().work()._replace(accumulate=True)


def test_a_rule_with_a_nudged_phase_is_planned_and_compared_as_ep_is() -> None:
    net, (x, y) = network(), batch()
    ep, own = (kind(net, 20, 5, 0.01) for kind in (cep.EP, Slowed))
    ep.accumulate = True
    assert cep.plan(net, own, 3).costs == cep.plan(net, ep, 3).costs
    for mine, theirs in zip(compare(own, x, y).matches, compare(ep, x, y).matches, strict=True):
        assert torch.equal(mine.updates, theirs.updates)
