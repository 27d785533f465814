"""What `schedule="asynchronous"` and `tolerance=` cost in accuracy and save in time: short trainings on MNIST.

    python benchmarks/shorter_phases.py --data-dir DIR [--out benchmarks/results]

Trains each preset in each way, with the same seeds, one run after the other, and writes shorter_phases.csv (a line per
run) and a Markdown table of the means.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ceprop_cuda as cep
from ceprop_cuda.data import Batches, Dataset, load
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv
from ceprop_cuda.presets import PRESETS, Preset

# (preset, epochs, seeds)
RUNS = [("c-ep-1h", 3, (0, 1, 2)), ("ep-2h", 1, (0,))]


@dataclass(frozen=True)
class Run:
    """One training: what it was and what came of it."""

    preset: str
    epochs: int
    seed: int
    way: str
    test_error: float  # these two after the last epoch, percent
    train_error: float
    seconds_per_epoch: float
    free_steps: float
    nudged_steps: float


def ways(preset: Preset) -> dict[str, dict[str, Any]]:
    """Changes to a preset, by what they are called."""
    halves = {"free_steps": preset.free_steps // 2, "nudged_steps": (preset.nudged_steps + 1) // 2}
    return {
        "as published": {},
        "synchronous, half the steps": halves,
        "asynchronous, half the steps": {"schedule": "asynchronous", **halves},
        "tolerance 1e-3": {"tolerance": 1e-3},
        "tolerance 1e-5": {"tolerance": 1e-5},
        "asynchronous, tolerance 1e-3": {"schedule": "asynchronous", "tolerance": 1e-3},
    }


def train(preset: Preset, data: Dataset, epochs: int, seed: int) -> dict[str, Any]:
    """The last epoch's measures, and the mean seconds of an epoch."""
    torch.manual_seed(seed)
    net = preset.network(data.train_x[0].numel(), data.classes)
    trainer = cep.Trainer(preset.rule(net))
    batches = Batches(data.train_x, data.train_y, preset.batch_size, shuffle=True, seed=seed)
    history = trainer.fit(batches, epochs, test=Batches(data.test_x, data.test_y, 500))
    seconds = statistics.mean(row["seconds"] for row in history)
    steps = history[-1]["steps"]
    return {
        "test_error": round(history[-1]["test_error"], 2),
        "train_error": round(history[-1]["train_error"], 2),
        "seconds_per_epoch": round(seconds, 2),
        "free_steps": round(steps[0], 1),
        "nudged_steps": round(steps[1], 1),
    }


def table(rows: list[Run]) -> str:
    lines = [
        "| preset | epochs | phases | test error, % | s an epoch | free steps | nudged steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, epochs, seeds in RUNS:
        for way in ways(PRESETS[preset]):
            mine = [row for row in rows if row.preset == preset and row.way == way]
            errors = ", ".join(f"{row.test_error:.2f}" for row in mine)
            means = [
                statistics.mean(getattr(row, key) for row in mine)
                for key in ("seconds_per_epoch", "free_steps", "nudged_steps")
            ]
            columns = f"{means[0]:.1f} | {means[1]:.1f} | {means[2]:.1f}"
            lines.append(
                f"| {preset}, {len(seeds)} seed{'s' * (len(seeds) > 1)} | {epochs} | {way} | {errors} | {columns} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    data = load("mnist", args.data_dir)
    rows: list[Run] = []
    for preset, epochs, seeds in RUNS:
        for seed in seeds:
            for way, changes in ways(PRESETS[preset]).items():
                measures = train(replace(PRESETS[preset], **changes), data, epochs, seed)
                rows.append(Run(preset, epochs, seed, way, **measures))
                print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "shorter_phases.csv", rows, environment())
    print(table(rows))


if __name__ == "__main__":
    main()
