"""What many batches in one call save, on MNIST: an epoch by Trainer.fit against a call for each batch, and networks
that learn together against one after the other.

Calls for each batch are ``rule.step`` of continual EP, ``rule.backward`` and ``torch.optim.SGD`` of EP, in a loop.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ceprop_cuda import Replicas, data
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.training import CEP, EP, MovingRule, Trainer, groups_of

BATCH = 20  # samples, in all of these presets
NAMES = ("c-ep-1h", "c-vf-1h", "ep-1h", "c-ep-2h", "ep-2h")
NETWORKS = 8
OF_NETWORKS = "c-ep-1h"


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def a_call_each(name: str, batches: data.Batches) -> Callable[[], object]:
    preset = PRESETS[name]
    net = preset.network(784, 10)
    rule = preset.rule(net, "fused", gradients_only=True)
    optimizer = torch.optim.SGD(groups_of(net, preset.lr))

    def train() -> None:
        for inputs, target in batches:
            if isinstance(rule, CEP):
                rule.step(inputs, target)
                continue
            assert isinstance(rule, EP)
            net.zero_grad()
            rule.backward(inputs, target)
            optimizer.step()

    return train


def epochs(name: str, x: Tensor, y: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Seconds by Trainer.fit and by a call for each batch, round by round; x (N, 1, 28, 28), y (N,)."""
    batches = data.Batches(x, y, BATCH, shuffle=True)
    trainer = Trainer(PRESETS[name].rule(PRESETS[name].network(784, 10), "fused"))
    train = a_call_each(name, batches)
    return [
        (seconds(lambda: trainer.fit(batches, epochs=1, progress=False)), seconds(train)) for _ in range(rounds + 1)
    ][1:]


def networks(x: Tensor, y: Tensor, rounds: int, threads: Sequence[int]) -> list[tuple[float, float]]:
    """Seconds of networks that learn together, and of one after the other by the number of threads that is best for
    that, exactly so many, each by one call, round by round."""
    os.environ["CEPROP_CPU_OVERSUBSCRIBE"] = "1"
    preset = PRESETS[OF_NETWORKS]
    rules = []
    for _ in range(NETWORKS):
        rule = preset.rule(preset.network(784, 10), "fused")
        assert isinstance(rule, MovingRule)
        rules.append(rule)
    alone = copy.deepcopy(rules)
    orders = torch.stack([torch.randperm(len(x)).view(-1, BATCH) for _ in rules])
    replicas = Replicas(rules)

    def one_after_the_other() -> None:
        for rule, order in zip(alone, orders, strict=True):
            rule.learn(x, y, order)

    def with_threads(count: int) -> float:
        torch.set_num_threads(count)
        return seconds(one_after_the_other)

    found = []
    for _ in range(rounds + 1):
        torch.set_num_threads(max(threads))
        together = seconds(lambda: replicas.learn(x, y, orders))
        found.append((together, min(map(with_threads, threads))))
    return found[1:]


def line(what: str, found: Sequence[tuple[float, float]], batches: int) -> str:
    fast, slow = (1e3 * statistics.median(column) / batches for column in zip(*found, strict=True))
    ratios = sorted(b / a for a, b in found)
    middle = statistics.median(ratios)
    both = f"{fast:.3f} and {slow:.3f} ms a batch, {fast * batches / 1e3:.2f} and {slow * batches / 1e3:.2f} s in all"
    return f"{what}: {both}, {middle:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=400, help="of an epoch; all of MNIST are 3000")
    parser.add_argument("--presets", nargs="*", default=NAMES, metavar="NAME")
    arguments = parser.parse_args()
    mnist = data.load("mnist", arguments.data_dir)
    batches = min(arguments.batches, len(mnist.train_x) // BATCH)
    x, y = mnist.train_x[: BATCH * batches], mnist.train_y[: BATCH * batches]
    threads = torch.get_num_threads()
    for name in arguments.presets:
        print(line(name, epochs(name, x, y, arguments.rounds), batches), flush=True)
    together = networks(x, y, arguments.rounds, range(1, threads + 1))
    print(line(f"{NETWORKS} networks of {OF_NETWORKS}", together, NETWORKS * batches))


if __name__ == "__main__":
    main()
