"""How many samples have not settled when a run's phases end, and how much of its weight updates comes from them.

    python benchmarks/unsettled.py --run DIR [--run DIR ...] --data-dir DIR [--samples 3000] [--out DIR]

EP takes both phases to end at a fixed point. Takes the last weights of runs of ``ceprop train`` and the first samples
of the training set, writes unsettled.csv and prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from oscillations import MOVES, largest_change
from torch import Tensor

from ceprop_cuda import Network, data
from ceprop_cuda.cli.run_settings import preset_of
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv
from ceprop_cuda.presets import Preset
from ceprop_cuda.run_directory import read_checkpoint


@dataclass(frozen=True)
class Ends:
    """Of the samples, in percent; the last in percent of the squared contrasts of all samples."""

    preset: str
    schedule: str
    epochs: int
    wrong: float  # are misclassified
    free: float  # some unit still moves in the step after the free phase
    nudged: float  # or in the one after the nudged phase
    oscillating: float  # and all units are back after another one
    wrong_and_nudged: float
    contrast_of_nudged: float | None  # of dense networks with tied feedback only


def squared_contrasts(x: Tensor, free: Sequence[Tensor], nudged: Sequence[Tensor]) -> Tensor:
    """``(B,)``: of each sample, the sum over all weights of (s'[l]^T s'[l-1] - s[l]^T s[l-1])^2, with s = free
    ``(B, n_l)`` and s' = nudged, layer 0 below both being x ``(B, n_in)``.

    From inner products of states: the contrasts themselves, a matrix per sample, are never made.
    """

    def products(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1)

    total = x.new_zeros(len(x), dtype=torch.float64)
    before, after = ([s.double() for s in (x, *states)] for states in (free, nudged))
    for (a, b), (c, d) in zip(pairwise(before), pairwise(after), strict=True):
        total += products(a, a) * products(b, b) + products(c, c) * products(d, d) - 2 * products(a, c) * products(b, d)
    return total


def ends(name: str, net: Network, preset: Preset, epochs: int, x: Tensor, y: Tensor) -> Ends:
    free = net.relax(x, preset.free_steps)
    nudged = net.relax(x, preset.nudged_steps, states=free, target=y, beta=preset.beta)

    def percent(of: Tensor) -> float:
        return round(100 * of.double().mean().item(), 2)

    first, second = (
        largest_change(nudged, net.relax(x, steps, states=nudged, target=y, beta=preset.beta)) for steps in (1, 2)
    )
    moves = first > MOVES
    wrong = free[-1].argmax(1) != y
    part = None
    if preset.convolutions is None and preset.feedback == "tied":
        contrasts = squared_contrasts(x.flatten(1), free, nudged)
        part = round(100 * (contrasts[moves].sum() / contrasts.sum()).item(), 1)
    return Ends(
        name,
        preset.schedule,
        epochs,
        percent(wrong),
        percent(largest_change(free, net.relax(x, 1, states=free)) > MOVES),
        percent(moves),
        percent(moves & (second < MOVES)),
        percent(wrong & moves),
        part,
    )


def table(rows: Sequence[Ends]) -> str:
    lines = [
        "| preset | steps | epochs | misclassified | moving after the free phase | after the nudged one "
        "| with period two | moving and misclassified | share of the contrast |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = (
            row.wrong,
            row.free,
            row.nudged,
            row.oscillating,
            row.wrong_and_nudged,
            row.contrast_of_nudged,
        )
        written = " | ".join("" if share is None else f"{share:.1f} %" for share in shares)
        lines.append(f"| {row.preset} | {row.schedule} | {row.epochs} | {written} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True, metavar="DIR", help="may be repeated")
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    arguments = parser.parse_args()
    mnist = data.load("mnist", arguments.data_dir)
    x, y = mnist.train_x[: arguments.samples], mnist.train_y[: arguments.samples]
    rows = []
    for run in arguments.run:
        checkpoint = read_checkpoint(run)
        config = checkpoint["config"]
        preset = preset_of(config)
        net = preset.network(tuple(x.shape[1:]), mnist.classes)
        net.load_state_dict(checkpoint["network"])
        with torch.no_grad():
            rows.append(ends(config["preset"], net, preset, len(checkpoint["history"]), x, y))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "unsettled.csv", rows, environment())
    print(table(rows))


if __name__ == "__main__":
    main()
