"""Whether samples still move at the end of the free phase, epoch by epoch, and what the errors do then.

Layers that move at once can fall into an oscillation of period two, in which no fixed point is left to compare with:
the same training is made with synchronous and with asynchronous steps. Writes oscillations-PRESET.csv and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ceprop_cuda import Network, data
from ceprop_cuda.arguments.choices import Gate, Schedule, words
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv
from ceprop_cuda.presets import PRESETS, Preset
from ceprop_cuda.training import Trainer

SAMPLES = 5000  # of the test set, which are watched
MOVES = 0.1  # a unit that changes by more than this in a step moves


@dataclass(frozen=True)
class Epoch:
    """Errors and shares of samples in percent."""

    schedule: str
    epoch: int
    train_error: float
    test_error: float
    moving: float  # some unit still moves in the step after the free phase
    oscillating: float  # and all are back after another one


def largest_change(states: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(B,)``: of each sample, over all units, between two lists of states ``(B, ...)``."""
    return torch.stack([(a - b).abs().flatten(1).amax(1) for a, b in zip(states, after, strict=True)]).amax(0)


def moving(net: Network, x: torch.Tensor, free_steps: int) -> tuple[float, float]:
    """Percentages of the samples x (B, ...) that move after so many steps, and of those with period two."""
    states = net.relax(x, steps=free_steps)
    first, second = (largest_change(states, net.relax(x, steps=steps, states=states)) for steps in (1, 2))
    moves = first > MOVES
    return 100 * moves.double().mean().item(), 100 * (moves & (second < MOVES)).double().mean().item()


def train(preset: Preset, epochs: int, seed: int, mnist: data.Dataset) -> list[Epoch]:
    """As ``ceprop train`` does with these settings."""
    torch.manual_seed(seed)
    net = preset.network(tuple(mnist.train_x.shape[1:]), mnist.classes)
    trainer = Trainer(preset.rule(net))
    batches, test = mnist.train_batches(preset.batch_size, seed), mnist.test_batches(SAMPLES)
    watched, _ = next(iter(test))
    made = []
    for epoch in range(1, epochs + 1):
        (metrics,) = trainer.fit(batches, 1, test=test, progress=False)
        assert metrics["test_error"] is not None
        made.append(
            Epoch(
                preset.schedule,
                epoch,
                metrics["train_error"],
                metrics["test_error"],
                *moving(net, watched, preset.free_steps),
            )
        )
        print(made[-1], flush=True)
    return made


def figure(epochs: Sequence[Epoch], path: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    above, below = drawn.subplots(2, sharex=True)
    for color, schedule in zip(("C0", "C1"), words(Schedule), strict=True):
        of_it = [epoch for epoch in epochs if epoch.schedule == schedule]
        at = [epoch.epoch for epoch in of_it]
        above.plot(at, [epoch.test_error for epoch in of_it], color=color, label=f"{schedule}, test")
        above.plot(
            at, [epoch.train_error for epoch in of_it], color=color, linestyle=":", label=f"{schedule}, training"
        )
        below.plot(at, [epoch.moving for epoch in of_it], color=color, label=schedule)
    above.set(ylabel="error, %", yscale="log")
    below.set(ylabel="samples still moving, %", xlabel="epoch")
    below.set_yscale("symlog", linthresh=0.1)
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    drawn.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="c-vf-1h", choices=PRESETS)
    parser.add_argument(
        "--gate",
        choices=("none", *words(Gate)),
        help="as of `ceprop train` (default: the preset's)",
    )
    parser.add_argument("--epochs", type=int, help="(default: the preset's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    mnist = data.load("mnist", arguments.data_dir)
    preset = PRESETS[arguments.preset]
    if arguments.gate is not None:
        preset = replace(preset, gate=None if arguments.gate == "none" else arguments.gate)
    count = arguments.epochs or preset.epochs
    runs = [train(replace(preset, schedule=schedule), count, arguments.seed, mnist) for schedule in words(Schedule)]
    epochs = [epoch for run in runs for epoch in run]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / f"oscillations-{arguments.preset}.csv", epochs, environment())
    figure(epochs, arguments.out / f"oscillations-{arguments.preset}.png")


if __name__ == "__main__":
    main()
