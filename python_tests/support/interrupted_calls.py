"""Networks for calls that are interrupted, and a program that interrupts many of them.

Usage: ``interrupted_calls.py NETWORK``. Its calls run on two workers, which ask each other every few steps whether the
states have settled; they never do. Prints the number of every call that ended by a KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import torch
from torch import nn

import ceprop_cuda as cep


def graph() -> cep.Network:
    """Layers that are joined otherwise than in a chain."""
    return cep.graph(
        [
            ("input", "h1", nn.Linear(30, 40)),
            ("h1", "h2", nn.Linear(40, 20)),
            ("h2", "out", nn.Linear(20, 10)),
            ("h1", "out", nn.Linear(40, 10)),
        ],
        input_shape=(30,),
        output="out",
    )


NETWORKS: dict[str, Callable[[], tuple[cep.Network, tuple[int, ...]]]] = {
    "dense": lambda: (cep.mlp(30, 40, 20, 10), (6, 30)),  # one sample after the other, or all in step
    "one sample": lambda: (cep.mlp(30, 40, 20, 10), (1, 30)),
    "convolutions": lambda: (cep.convnet((1, 10, 10), (4, 5), 3, fc=(10,)), (4, 1, 10, 10)),
    "graph": lambda: (graph(), (6, 30)),
}


def main() -> None:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    torch.set_num_threads(2)
    net, shape = NETWORKS[sys.argv[1]]()
    with torch.no_grad():
        net.weights[1].fill_(torch.nan)  # never settles
    rule = cep.EP(net, 5, 10**8, 0.5, tolerance=0.0)
    x, y = torch.rand(shape), torch.arange(shape[0])
    for number in range(25):
        signal.setitimer(signal.ITIMER_REAL, 0.06 + 0.0007 * number)
        try:
            net.relax(x, 10**8, tolerance=0.0) if number % 2 else rule.backward(x, y)
        except KeyboardInterrupt:
            print(number)


if __name__ == "__main__":
    main()
