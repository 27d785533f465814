"""Timing of calls in turn, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

MM_SIZE = 1024
MM_GFLOP = 2 * MM_SIZE**3 / 1e9  # 10^9 operations
SECONDS_PER_ROUND = 0.1  # that a call is repeated for, at least three times ...
SLOW = 0.5  # ... unless it takes as many seconds, and then once
ROUNDS_OF_SLOW = 3


class Timed(NamedTuple):
    """A call to be timed."""

    call: Callable[[], object]
    seconds: float  # about how long it takes
    reset: Callable[[], object]  # called before each round, outside the clock

    @property
    def repeats(self) -> int:
        return 1 if self.seconds >= SLOW else max(3, int(SECONDS_PER_ROUND / self.seconds))

    def rounds(self, rounds: int) -> int:
        """How many of ``rounds`` it takes part in."""
        return min(rounds, ROUNDS_OF_SLOW) if self.seconds >= SLOW else rounds


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(*values * 3)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def prepared(call: Callable[[], object], reset: Callable[[], object] = lambda: None) -> Timed:
    """``call``, warmed up."""
    seconds = seconds_of(call)
    return Timed(call, seconds if seconds >= SLOW else seconds_of(call), reset)


@torch.no_grad()
def restore(net: nn.Module, start: nn.Module) -> None:
    """Give ``net`` the parameters of ``start``."""
    for p, q in zip(net.parameters(), start.parameters(), strict=True):
        p.copy_(q)


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(timed: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """By name, the seconds of a call in each round: the median of its repeats. The order turns from round to round."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            one = timed[name]
            if number < one.rounds(rounds):
                one.reset()
                found[name].append(statistics.median(seconds_of(one.call) for _ in range(one.repeats)))
    return found


def matrix_product() -> Timed:
    """torch.mm of two square matrices of MM_SIZE, MM_GFLOP: the rate to compare others with."""
    a, b = torch.rand(2, MM_SIZE, MM_SIZE)
    out = torch.empty_like(a)
    return prepared(lambda: torch.mm(a, b, out=out))
