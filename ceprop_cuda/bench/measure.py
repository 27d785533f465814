"""Timing of calls in turn, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

MM_SIZES = {"cpu": 1024, "cuda": 4096}  # of torch.mm's matrices; 1024 would leave half of a large GPU idle
SECONDS_PER_ROUND = 0.1  # that a call is repeated for, at least three times ...
SLOW = 0.5  # ... unless it takes as many seconds, and then once
ROUNDS_OF_SLOW = 3

# Makes a number of calls in a row and says how many seconds each of them took.
Clock = Callable[[Callable[[], object], int], list[float]]


def clock_of_cpu(call: Callable[[], object], repeats: int) -> list[float]:
    """From before to after each call."""
    marks = [time.perf_counter()]
    for _ in range(repeats):
        call()
        marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


def clock_of_gpu(call: Callable[[], object], repeats: int) -> list[float]:
    """From the end of one call's work on the GPU to the end of the next one's. The host runs ahead and waits once, at
    the end, as in training: a call takes as long as the slower of the two."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)]


CLOCKS: dict[str, Clock] = {"cpu": clock_of_cpu, "cuda": clock_of_gpu}


class Timed(NamedTuple):
    """A call to be timed."""

    call: Callable[[], object]
    seconds: float  # about how long it takes
    reset: Callable[[], object]  # called before each round, outside the clock
    clock: Clock = clock_of_cpu

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


def prepared(
    call: Callable[[], object], reset: Callable[[], object] = lambda: None, clock: Clock = clock_of_cpu
) -> Timed:
    """``call``, warmed up."""
    (seconds,) = clock(call, 1)
    if seconds < SLOW:
        (seconds,) = clock(call, 1)
    return Timed(call, seconds, reset, clock)


@torch.no_grad()
def restore(net: nn.Module, start: nn.Module) -> None:
    """Give ``net`` the parameters of ``start``."""
    for p, q in zip(net.parameters(), start.parameters(), strict=True):
        p.copy_(q)


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
                found[name].append(statistics.median(one.clock(one.call, one.repeats)))
    return found


def matrix_product(device: str) -> tuple[Timed, float]:
    """torch.mm of two square float32 matrices, the rate to compare others with; and its 10^9 operations."""
    size = MM_SIZES[device]
    a, b = torch.rand(2, size, size, device=device)
    out = torch.empty_like(a)
    return prepared(lambda: torch.mm(a, b, out=out), clock=CLOCKS[device]), 2 * size**3 / 1e9
