"""How far free feedback may point away from the forward weights at the start (the sweep of arXiv 2005.04168)."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data import load
from ..output.figures import import_matplotlib
from ..presets import PRESETS
from ..theorem import compare
from .runs import Run

BATCHES = 5  # that the angle between update and gradient is the mean over


@dataclass(frozen=True)
class Point:
    """One run of the sweep; angles in degrees, before training."""

    row: str
    seed: int
    feedback_angle: float  # between feedback and forward weights
    gradient_angle: float  # between the updates of all parameters and minus the gradient of BPTT
    test_error: float  # after training, percent


def sweep(runs: Sequence[Run], data_dir: Path | None) -> list[Point]:
    """A point for each complete run of a row that sets the angle."""
    points = []
    for run in runs:
        if run.row.angle is not None and run.is_complete():
            error = run.history()[-1]["test_error"]
            assert error is not None  # `ceprop train` always measures it
            points.append(Point(run.name, run.seed, run.row.angle, gradient_angle(run, data_dir), error))
    return points


def gradient_angle(run: Run, data_dir: Path | None) -> float:
    """Between the updates of the rule and minus BPTT's gradient, for the network that the run began with."""
    config = run.config()
    preset = replace(PRESETS[config["preset"]], feedback_angle=config["angle"])
    dataset = load(config["data"], data_dir or config["data_dir"])
    torch.manual_seed(run.seed)  # as `ceprop train` draws the network
    net = preset.network(tuple(dataset.train_x.shape[1:]), dataset.classes).double()
    x, y = dataset.train_x[: BATCHES * preset.batch_size].double(), dataset.train_y[: BATCHES * preset.batch_size]
    batches = zip(x.split(preset.batch_size), y.split(preset.batch_size), strict=True)
    rule = preset.rule(net)
    return statistics.fmean(compare(rule, *batch).angle for batch in batches)


def angle_figure(points: Sequence[Point]) -> bytes:
    """A PNG image: test error and angle to BPTT's gradient against the initial angle, mean and standard deviation."""
    import_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    angles = sorted({point.feedback_angle for point in points})
    for axes, name, label, color in (
        (left, "test_error", "test error, %", "C0"),
        (right, "gradient_angle", "angle between update and gradient, degrees", "C1"),
    ):
        groups = [[getattr(point, name) for point in points if point.feedback_angle == angle] for angle in angles]
        deviations = [statistics.stdev(group) if len(group) > 1 else 0.0 for group in groups]
        axes.errorbar(angles, list(map(statistics.fmean, groups)), deviations, color=color, marker="o", capsize=3)
        axes.set_ylabel(label, color=color)
        axes.tick_params(axis="y", colors=color)
        axes.set_ylim(bottom=0)
    left.set(xlabel="initial angle between feedback and forward weights, degrees", xticks=angles)
    left.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
