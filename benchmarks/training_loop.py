"""What an epoch takes beside its training steps: Trainer.fit against the same number of bare steps, on MNIST."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ceprop_cuda import data
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.training import Trainer

BATCHES = 400


def ratios(name: str, x: torch.Tensor, y: torch.Tensor, rounds: int) -> list[float]:
    """Seconds of an epoch over seconds of its steps, round by round; x (N, 1, 28, 28), y (N,)."""
    preset = PRESETS[name]
    net = preset.network(784, 10)
    rule = preset.rule(net, "fused")
    trainer = Trainer(rule)
    batches = data.Batches(x, y, 20, shuffle=True)
    in_order = list(data.Batches(x, y, 20))

    def bare_steps() -> None:
        for inputs, target in in_order:
            rule.step(inputs, target)

    def seconds(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return [
        seconds(lambda: trainer.fit(batches, epochs=1, progress=False)) / seconds(bare_steps) for _ in range(rounds + 1)
    ][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    mnist = data.load("mnist", arguments.data_dir)
    samples = 20 * BATCHES
    for name in ("c-ep-1h", "ep-1h", "c-ep-2h", "ep-2h"):
        of_rounds = ratios(name, mnist.train_x[:samples], mnist.train_y[:samples], arguments.rounds)
        print(f"{name}: {statistics.median(of_rounds):.3f} ({min(of_rounds):.3f} - {max(of_rounds):.3f})")


if __name__ == "__main__":
    main()
