"""How many threads calls get where the cores have other work: found out by trying, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ceprop_cuda import _C

IDLE = {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3}  # seconds of a call by so many threads
BUSY = {1: 1.0, 2: 5.0, 4: 9.0, 8: 12.0}  # where a worker waits for a core
SMALL = {1: 1.0, 2: 1.5, 4: 2.0, 8: 3.0}  # of a call that has less work than was thought


class Caller:
    """Makes calls that take as long as it is told."""

    def __init__(self, most: int) -> None:
        self.size = _C.TeamSize(most)
        self.now = 0.0

    def calls(self, count: int, seconds: dict[int, float], batches: int = 1) -> list[int]:
        """By how many threads each of them ran."""
        ran = []
        for _ in range(count):
            threads = self.size.threads()
            self.now += seconds[threads] * batches
            self.size.note(seconds[threads], self.now, batches)
            ran.append(threads)
        return ran


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_it_begins_with_the_most_and_stays_where_they_pay(most: int) -> None:
    caller = Caller(most)
    assert caller.calls(5, IDLE) == [most] * 5
    ran = caller.calls(5000, IDLE)
    assert ran.count(most) > 0.96 * len(ran)
    assert not caller.size.gave_up_threads()


@pytest.mark.parametrize("most", [2, 8])
@pytest.mark.parametrize("seconds", [BUSY, SMALL])
def test_it_falls_back_to_one_where_threads_cost(most: int, seconds: dict[int, float]) -> None:
    caller = Caller(most)
    caller.calls(100, seconds)
    ran = caller.calls(5000, seconds)
    spent = sum(seconds[threads] for threads in ran)
    assert spent < 1.05 * len(ran) * seconds[1]  # trials of other sizes among them
    assert caller.size.gave_up_threads()


@pytest.mark.parametrize("most", [2, 4, 8])
def test_it_follows_a_load_that_comes_and_goes(most: int) -> None:
    caller = Caller(most)
    for _ in range(3):
        caller.calls(10_000, IDLE)  # trials of what is slow are rare
        assert caller.calls(2000, IDLE).count(most) > 1900
        caller.calls(100, BUSY)  # little after it begins
        assert caller.calls(2000, BUSY).count(1) > 1900


def test_an_early_trial_does_not_come_again_and_again() -> None:
    """Where all sizes slow down alike, trying them is no help."""
    caller, slow = Caller(2), {1: 4.0, 2: 2.4}
    caller.calls(500, IDLE)
    ran = caller.calls(5000, slow)
    assert ran.count(2) > 0.95 * len(ran)


@pytest.mark.parametrize("noise", [lambda n: 1 + n % 3, lambda n: 1 + 9 * (n % 13 == 0)])
def test_noise_changes_little(noise: Callable[[int], float]) -> None:
    caller = Caller(2)
    for n in range(5000):
        caller.calls(1, {threads: noise(n) * seconds for threads, seconds in IDLE.items()})
    best = sum(noise(n) * IDLE[2] for n in range(5000))
    assert caller.now < 1.25 * best


def test_it_does_not_fall_back_for_little() -> None:
    caller = Caller(2)
    ran = caller.calls(1000, {1: 1.0, 2: 1.15})
    assert ran.count(2) > 970


def test_a_cold_start_is_no_reason() -> None:
    caller = Caller(2)
    for factor in (9.0, 5.0, 2.0, 1.5):
        caller.calls(1, {threads: factor * seconds for threads, seconds in IDLE.items()})
    ran = caller.calls(1000, IDLE)
    assert ran.count(2) > 970


def test_calls_of_many_batches_count_as_many() -> None:
    caller = Caller(2)
    assert caller.calls(200, IDLE, batches=200).count(2) > 0.96 * 200
    caller.calls(3, BUSY, batches=200)
    assert caller.calls(200, BUSY, batches=200).count(1) > 0.96 * 200
