"""The rates of connections as the parameter groups of a torch optimizer, where torch's schedulers find them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import torch

from ..arguments.checks import real_number, shown
from ..networks import Network
from .setting import Checked, Setting

# What torch.optim.SGD can do beside steps with momentum and weight decay.
PLAIN = {"dampening": 0, "nesterov": False, "maximize": False, "differentiable": False}


class Rates(NamedTuple):
    """By what a rule moves the parameters: the rate of each connection, and two numbers for all of them."""

    lr: list[float]
    weight_decay: float
    momentum: float


def groups_of(net: Network, rates: Sequence[float]) -> list[dict[str, Any]]:
    """A group for each connection, in the order of ``net.weights``: its weights, bias and feedback weights, as far as
    it has them, and its rate."""
    connections = zip(net.weights, net.biases, net.feedback, rates, strict=True)
    return [{"params": [p for p in (w, b, v) if p is not None], "lr": rate} for w, b, v, rate in connections]


def rates_of(optimizer: torch.optim.Optimizer, connections: int, has_momentum: bool) -> Rates:
    """What the groups say; ValueError, which names it, if that is something that the rule cannot do. Asked at every
    step: whoever has the optimizer may write into its groups."""
    groups = optimizer.param_groups
    if len(groups) != connections:
        raise ValueError(f"rule.optimizer must have a group for each of {connections} connections, got {len(groups)}")
    for number, group in enumerate(groups):
        refused = PLAIN if has_momentum else PLAIN | {"momentum": 0}
        if any(map(group.get, refused)):
            name = next(filter(group.get, refused))
            why = "the kernels have none" if has_momentum else "continual EP takes plain steps in its phase"
            raise ValueError(
                f"{name} of rule.optimizer must stay {refused[name]}, as {why}, got {shown(group[name])} in group "
                f"{number} (of a scheduler that cycles it: cycle_momentum=False)"
            )
    rates = [group["lr"] for group in groups]
    if not all(map(_is_rate, rates)):
        rates = [rate(f"lr[{number}]", value) for number, value in enumerate(rates)]
    return Rates(rates, _of_all("weight_decay", groups), _of_all("momentum", groups))


def _of_all(name: str, groups: Sequence[dict[str, Any]]) -> float:
    numbers = [rate(name, group[name]) for group in groups]
    if len(set(numbers)) > 1:
        raise ValueError(f"{name} must be the same in all groups of rule.optimizer, got {numbers}")
    return numbers[0]


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
        return rule.own_sgd.param_groups


class OfGroupsOrNone(OfGroups):
    """The same; or None, which says that the rule has no rates."""

    def __get__(self, rule: Any, owner: type | None = None) -> Any:
        return super().__get__(rule, owner) if rule is None or rule.has_rates else None

    def keep(self, rule: Checked, value: Sequence[float] | None) -> None:
        vars(rule)["has_rates"] = value is not None
        if value is not None:
            super().keep(rule, value)


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
