"""Ctrl-C during a long call is heard at once, and has changed nothing."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from command_line import PACKAGE
from interrupted_calls import NETWORKS
from project import SUPPORT

import ceprop_cuda as cep

LONG = 10**8  # steps: minutes of any network


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """With its first optimizer torch imports its compiler, for a second. An interrupt then would not come in a call."""
    torch.optim.SGD([torch.zeros(1)])


@contextmanager
def interrupted(after: float) -> Iterator[None]:
    """Expects a KeyboardInterrupt from the body, little later than it is sent."""
    # Where the tests run in the background of a shell, it has told them to ignore this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(after, signal.raise_signal, [signal.SIGINT])
    began = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < after + 10  # else the call would have gone on for minutes


CALLS: dict[str, Callable[[cep.Network, torch.Tensor, torch.Tensor], Any]] = {
    "relax": lambda net, x, y: net.relax(x, LONG),
    "relax with tolerance": lambda net, x, y: net.relax(x, LONG, target=y, beta=0.5, tolerance=0.0),
    "EP, free": lambda net, x, y: cep.EP(net, LONG, 5, 0.5).backward(x, y),
    "EP, nudged": lambda net, x, y: cep.EP(net, 5, LONG, 0.5, nudging="symmetric").backward(x, y),
    "CEP, free": lambda net, x, y: cep.CEP(net, LONG, 5, 0.5, 1e-3).step(x, y),
    "CEP, nudged": lambda net, x, y: cep.CEP(net, 5, LONG, 0.5, 1e-3).step(x, y),
    "CEP, way back": lambda net, x, y: cep.CEP(net, 1, LONG, 0.5, 1e-3, nudging="symmetric").step(x, y),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_long_call_is_interrupted(network: str, call: str, count: int, threads: Callable[[int], None]) -> None:
    net, shape = NETWORKS[network]()
    if call == "relax with tolerance":
        with torch.no_grad():  # never settles: a NaN always moves
            net.weights[1].fill_(torch.nan)
    before = copy.deepcopy(net)
    threads(count)
    with interrupted(0.1):
        CALLS[call](net, torch.rand(shape), torch.arange(shape[0]))
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) or p.isnan().any()
        assert p.grad is None
    net.relax(torch.rand(shape), 3)  # the next call works


@pytest.mark.parametrize("network", NETWORKS)
def test_workers_that_ask_each_other_end_together(network: str) -> None:
    """With a tolerance they do, every few steps, between which an interrupt may come: none may go on alone."""
    program = [sys.executable, str(SUPPORT / "interrupted_calls.py"), network]
    environment = os.environ | {"CEPROP_CPU_OVERSUBSCRIBE": "1", "PYTHONPATH": PACKAGE}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(number) for number in range(25)], done.stderr


def test_a_handler_that_does_not_raise_ends_nothing() -> None:
    net, heard = cep.mlp(30, 40, 10), []
    handler = signal.signal(signal.SIGINT, lambda *_: heard.append(time.monotonic()))
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        began = time.monotonic()
        while not heard or time.monotonic() < began + 0.4:
            net.relax(torch.rand(5, 30), 50_000)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    assert len(heard) == 1


def test_calls_of_other_threads_are_not_interrupted() -> None:
    net, done = cep.mlp(30, 40, 10), []
    worker = threading.Thread(target=lambda: done.append(net.relax(torch.rand(5, 30), 100_000)))
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        worker.start()
        signal.raise_signal(signal.SIGINT)
        worker.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(done) == 1
