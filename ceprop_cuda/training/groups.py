"""The rates of connections as the parameter groups of a torch optimizer, where torch's schedulers find them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

from ..arguments.checks import real_number, shown
from ..networks import Network
from .setting import Checked, Setting

# What torch.optim.SGD can do beside plain steps with weight decay.
PLAIN = {"momentum": 0, "dampening": 0, "nesterov": False, "maximize": False, "differentiable": False}


def groups_of(net: Network, rates: Sequence[float]) -> list[dict[str, Any]]:
    """A group for each connection, in the order of ``net.weights``: its weights, bias and feedback weights, as far as
    it has them, and its rate."""
    connections = zip(net.weights, net.biases, net.feedback, rates, strict=True)
    return [{"params": [p for p in (w, b, v) if p is not None], "lr": rate} for w, b, v, rate in connections]


def rates_and_decay(optimizer: torch.optim.Optimizer, connections: int) -> tuple[list[float], float]:
    """The rate of each connection, and the weight decay of all of them; ValueError, which names it, if the groups say
    something that continual EP cannot do. Asked at every step: whoever has the optimizer may write into its groups."""
    groups = optimizer.param_groups
    if len(groups) != connections:
        raise ValueError(f"rule.optimizer must have a group for each of {connections} connections, got {len(groups)}")
    for number, group in enumerate(groups):
        if any(map(group.get, PLAIN)):
            name = next(filter(group.get, PLAIN))
            raise ValueError(
                f"{name} of rule.optimizer must stay {PLAIN[name]}, as continual EP takes plain steps in its phase, "
                f"got {shown(group[name])} in group {number} (of a scheduler that cycles it: cycle_momentum=False)"
            )
    rates = [group["lr"] for group in groups]
    if not all(map(_is_rate, rates)):
        rates = [rate(f"lr[{number}]", value) for number, value in enumerate(rates)]
    decays = [rate("weight_decay", group["weight_decay"]) for group in groups]
    if len(set(decays)) > 1:
        raise ValueError(f"weight_decay must be the same in all groups of rule.optimizer, got {decays}")
    return rates, decays[0]


def _is_rate(value: object) -> TypeGuard[float]:
    return type(value) is float and 0 <= value < math.inf


def rate(name: str, value: object) -> float:
    """``value`` as a float; ValueError if it is no rate."""
    if _is_rate(value):
        return value
    return real_number(name, value, lambda number: number >= 0, "a finite number >= 0")


class OfGroups(Setting):
    """A setting of a rule that lies in the groups of its optimizer: a number for each of them."""

    def __get__(self, rule: Checked | None, owner: type | None = None) -> Any:
        return self if rule is None else tuple(group[self.name] for group in self._groups(rule))

    def keep(self, rule: Checked, value: Sequence[float]) -> None:
        for group, number in zip(self._groups(rule), value, strict=False):
            group[self.name] = number

    @staticmethod
    def _groups(rule: Any) -> list[dict[str, Any]]:
        return rule.optimizer.param_groups


class OfAllGroups(OfGroups):
    """One number for all groups."""

    def __get__(self, rule: Checked | None, owner: type | None = None) -> Any:
        if rule is None:
            return self
        numbers = super().__get__(rule)
        if len(set(numbers)) > 1:
            raise ValueError(
                f"{self.name} differs between the groups of rule.optimizer: {', '.join(map(str, numbers))}"
            )
        return numbers[0]

    def keep(self, rule: Checked, value: float) -> None:  # type: ignore[override]
        super().keep(rule, [value] * len(self._groups(rule)))
