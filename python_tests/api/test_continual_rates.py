"""Continual EP's rates lie in a torch optimizer: schedulers drive it, runs keep them, and nothing else may be set."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_network import batch, network
from training_runs import fit, without_seconds

import ceprop_cuda as cep
from ceprop_cuda.run_directory import read_checkpoint

lr_scheduler = torch.optim.lr_scheduler


def rule_on(net: cep.Network, lr: Any = (0.3, 0.2, 0.1), **settings: Any) -> cep.CEP:
    return cep.CEP(net, free_steps=12, nudged_steps=5, beta=0.2, lr=lr, **settings)


def test_a_group_holds_what_a_connection_learns() -> None:
    net = network(feedback="free")
    rule = rule_on(net, weight_decay=0.01)
    assert type(rule.optimizer) is torch.optim.SGD
    assert [group["lr"] for group in rule.optimizer.param_groups] == [0.3, 0.2, 0.1]
    assert [group["weight_decay"] for group in rule.optimizer.param_groups] == [0.01] * 3
    for e, group in enumerate(rule.optimizer.param_groups):
        parts = [p for p in (net.weights[e], net.biases[e], net.feedback[e]) if p is not None]
        assert len(parts) == (2 if e == 0 else 3)
        assert [id(p) for p in group["params"]] == [id(p) for p in parts]


def test_rates_are_read_from_and_written_to_the_groups() -> None:
    rule = rule_on(network())
    rule.lr, rule.weight_decay = 0.05, 0.5
    assert [(g["lr"], g["weight_decay"]) for g in rule.optimizer.param_groups] == [(0.05, 0.5)] * 3
    for rate, group in zip((0.1, 0.0, 0.2), rule.optimizer.param_groups, strict=True):
        group.update(lr=rate, weight_decay=0.25)
    assert (rule.lr, rule.weight_decay) == ((0.1, 0.0, 0.2), 0.25)

    other = rule_on(copy.deepcopy(rule.net), (0.1, 0.0, 0.2), weight_decay=0.25)
    x, y = batch()
    for each in (rule, other):
        each.step(x, y)
    assert all(map(torch.equal, rule.net.parameters(), other.net.parameters()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_copies_of_a_rule_have_groups_of_their_own(copied: Callable[[cep.CEP], cep.CEP]) -> None:
    rule = rule_on(network())
    other = copied(rule)
    assert other.optimizer.param_groups[0]["params"][0] is other.net.weights[0]
    other.lr = 0.7
    assert (rule.lr, other.lr) == ((0.3, 0.2, 0.1), (0.7,) * 3)
    other.step(*batch())


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, 3 * [lambda epoch: 1 / (2 + epoch)]),
    "LinearLR": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9, cycle_momentum=False),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_schedulers_drive_it(name: str) -> None:
    net, (x, y) = network(), batch()
    rule, by_hand = rule_on(net), rule_on(copy.deepcopy(net))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that the optimizer has made no step
        scheduler = SCHEDULERS[name](rule.optimizer)
        seen = []
        for _ in range(3):
            by_hand.lr = rule.lr
            for each in (rule, by_hand):
                each.step(x, y)
            seen.append(rule.lr)
            scheduler.step()
    assert len(set(seen)) == 3
    assert all(map(torch.equal, rule.net.parameters(), by_hand.net.parameters()))


def scheduled() -> cep.Trainer:
    torch.manual_seed(11)
    rule = rule_on(cep.mlp(12, 8, 3), (0.05, 0.02), nudging="random_sign")
    return cep.Trainer(rule, scheduler=lr_scheduler.StepLR(rule.optimizer, 1, gamma=0.5))


def test_a_scheduled_run_is_resumed_bitwise(tmp_path: Path) -> None:
    whole = scheduled()
    expected = fit(whole, epochs=4)
    assert whole.rule.lr == pytest.approx((0.05 / 16, 0.02 / 16))
    trainer = scheduled()
    fit(trainer, tmp_path, epochs=1)
    assert len(fit(trainer, tmp_path, epochs=2, resume=True)) == 2  # by the rule whose rates have fallen ...
    torch.manual_seed(5)
    resumed = scheduled()  # ... and by one whose have not
    assert without_seconds(fit(resumed, tmp_path, epochs=4, resume=True)) == without_seconds(expected)
    assert resumed.rule.lr == whole.rule.lr
    assert all(map(torch.equal, resumed.rule.net.parameters(), whole.rule.net.parameters()))
    assert [group["lr"] for group in read_checkpoint(tmp_path)["optimizer"]["param_groups"]] == list(whole.rule.lr)


def test_a_trainer_takes_the_rules_own_optimizer_only() -> None:
    rule = rule_on(network())
    assert cep.Trainer(rule).optimizer is cep.Trainer(rule, rule.optimizer).optimizer is rule.optimizer
    another = lr_scheduler.StepLR(rule_on(network()).optimizer, 1)
    with pytest.raises(ValueError, match=r"scheduler must be that of rule\.optimizer, as CEP moves the weights itself"):
        cep.Trainer(rule, scheduler=another)


def test_gradients_and_frozen_connections_are_left_alone() -> None:
    net = network()
    rule = rule_on(net, weight_decay=0.1)
    for p in (net.weights[1], net.biases[1]):
        p.requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    scheduler = lr_scheduler.StepLR(rule.optimizer, 1)
    rule.step(*batch())
    scheduler.step()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [True, True, False, False, True, True]
    assert all(p.grad is None for p in net.parameters())


WRONG = {
    "momentum": (lambda groups: groups[1].update(momentum=0.9), "momentum of rule.optimizer must stay 0.* got 0.9"),
    "nesterov": (lambda groups: groups[0].update(nesterov=True), "nesterov of rule.optimizer must stay False"),
    "dampening": (lambda groups: groups[0].update(dampening=0.1), "dampening of rule.optimizer must stay 0"),
    "maximize": (lambda groups: groups[2].update(maximize=True), "maximize of rule.optimizer must stay False.* in gr"),
    "negative": (lambda groups: groups[1].update(lr=-0.1), r"lr\[1\] must be a finite number >= 0, got -0\.1"),
    "nan": (lambda groups: groups[1].update(lr=float("nan")), r"lr\[1\] must be a finite number >= 0, got nan"),
    "tensor": (lambda groups: groups[1].update(lr=torch.tensor(0.1)), r"lr\[1\] must be a finite number >= 0, got t"),
    "decay": (lambda groups: groups[1].update(weight_decay=0.1), "weight_decay must be the same in all groups of"),
    "groups": (lambda groups: groups.pop(), "a group for each of 3 connections, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_continual_ep_cannot_do_is_refused_by_the_next_call(name: str) -> None:
    net, (x, y) = network(), batch()
    rule = rule_on(net)
    before = [p.detach().clone() for p in net.parameters()]
    change, message = WRONG[name]
    change(rule.optimizer.param_groups)
    for call in (lambda: rule.step(x, y), lambda: rule.predict(x, y), lambda: cep.Trainer(rule).fit([(x, y)], 1)):
        with pytest.raises(ValueError, match=message):
            call()
    assert all(map(torch.equal, net.parameters(), before))


def test_a_scheduler_that_cycles_momentum_is_told_to_leave_it() -> None:
    rule = rule_on(network())
    lr_scheduler.OneCycleLR(rule.optimizer, 0.1, total_steps=9)
    with pytest.raises(ValueError, match=r"must stay 0, .*cycle_momentum=False"):
        rule.step(*batch())
