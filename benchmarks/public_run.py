"""Continual EP beside a learning curve that the authors of arXiv 2005.04168 left in their public code.

github.com/ernoult/continualEP, ep_disc_1hidden/cuda0-2019-06-17/Trial-3-bestresult, has the settings and the errors of
one run of 784-512-10 on MNIST. Writes public-run.csv and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ceprop_cuda import CEP, data, mlp
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv
from ceprop_cuda.training import Trainer

# fmt: off
# Percent, after epochs 1, 2, ...
TEST = [
    19.47, 14.75, 12.34, 11.15, 10.51, 9.97, 9.27, 9.05, 8.64, 8.50, 8.36, 8.01, 7.77, 7.68, 7.58,
    7.41, 7.16, 7.24, 6.76, 6.94, 6.65, 6.50, 6.46, 6.44, 6.37, 6.05, 6.25, 6.04, 5.98, 5.79,
    5.89, 5.68, 5.65, 5.60, 5.65, 5.65, 5.44, 5.38, 5.41, 5.24, 5.09, 5.02, 5.02, 4.96, 4.98,
    4.94, 4.96, 4.88, 4.87, 4.79, 4.82, 4.55, 4.56, 4.72, 4.73, 4.48, 4.51, 4.32, 4.55, 4.42,
]
TRAIN = [
    38.37, 17.45, 14.37, 12.67, 11.61, 10.93, 10.46, 9.95, 9.59, 9.28, 8.98, 8.71, 8.40, 8.17, 7.96,
    7.70, 7.46, 7.29, 7.06, 6.87, 6.69, 6.49, 6.38, 6.25, 6.10, 5.96, 5.83, 5.71, 5.63, 5.56,
    5.43, 5.36, 5.28, 5.20, 5.08, 5.08, 4.98, 4.92, 4.77, 4.75, 4.65, 4.61, 4.51, 4.47, 4.43,
    4.31, 4.21, 4.18, 4.19, 4.08, 3.99, 3.99, 3.91, 3.85, 3.82, 3.79, 3.73, 3.65, 3.59, 3.56,
]
# fmt: on


@dataclass(frozen=True)
class Epoch:
    """Errors in percent."""

    epoch: int
    public_train: float
    train: float
    public_test: float
    test: float


def train(epochs: int, seed: int, mnist: data.Dataset) -> list[Epoch]:
    torch.manual_seed(seed)
    rule = CEP(mlp(784, 512, 10), free_steps=40, nudged_steps=15, beta=0.1, lr=(0.001, 0.0006))
    batches, test = mnist.train_batches(20, seed), mnist.test_batches(1000)
    history = Trainer(rule).fit(batches, epochs, test=test)
    made = []
    for metrics, public_train, public_test in zip(history, TRAIN, TEST, strict=False):
        assert metrics["test_error"] is not None
        made.append(Epoch(metrics["epoch"], public_train, metrics["train_error"], public_test, metrics["test_error"]))
    return made


def figure(epochs: Sequence[Epoch], path: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = drawn.add_subplot()
    at = [epoch.epoch for epoch in epochs]
    for color, name in (("C0", "train"), ("C1", "test")):
        axes.plot(at, [getattr(epoch, f"public_{name}") for epoch in epochs], color, label=f"{name}, the authors' run")
        axes.plot(at, [getattr(epoch, name) for epoch in epochs], "k:", label=f"{name}, this package")
    axes.set(xlabel="epoch", ylabel="error, %", yscale="log")
    axes.legend()
    axes.grid(which="both", alpha=0.3)
    drawn.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=len(TEST))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    arguments = parser.parse_args()
    epochs = train(arguments.epochs, arguments.seed, data.load("mnist", arguments.data_dir))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "public-run.csv", epochs, environment())
    figure(epochs, arguments.out / "public-run.png")
    last = epochs[-1]
    for name in ("train", "test"):
        apart = [abs(getattr(epoch, name) - getattr(epoch, f"public_{name}")) for epoch in epochs[1:]]
        print(f"{name}: {getattr(last, name):.2f} %, theirs {getattr(last, f'public_{name}'):.2f} %, ", end="")
        print(f"at most {max(apart):.2f} apart after the first epoch")


if __name__ == "__main__":
    main()
