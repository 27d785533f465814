"""What it costs that states cross between cores: a free step with few samples, whose units are shared by the workers,
beside one with a sample more, where each worker has samples of its own."""

from __future__ import annotations

import time

import torch

import ceprop_cuda as cep

STEPS = 2000


def seconds(net: cep.Network, x: torch.Tensor, steps: int) -> float:
    """The best of 30 calls; x ``(B, 784)``."""

    def call() -> float:
        began = time.perf_counter()
        net.relax(x, steps)
        return time.perf_counter() - began

    return min(call() for _ in range(30))


def main() -> None:
    net = cep.mlp(784, 512, 10)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (7, 8):
            x = torch.rand(batch, 784)
            a_step = (seconds(net, x, STEPS) - seconds(net, x, 0)) / STEPS
            print(f"{threads} threads, B = {batch}: {1e6 * a_step:.2f} us a step")


if __name__ == "__main__":
    main()
