"""The figures of a comparison with BPTT."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..output.figures import import_matplotlib
from .comparison import Comparison, Match

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = 5  # drawn of each layer and connection


def courses(comparison: Comparison, title: str) -> bytes:
    """A PNG image: per layer and connection, the courses of some recorded entries, from the one with
    the largest gradients to a middling one."""
    import_matplotlib()
    from matplotlib.figure import Figure

    shown = _without_biases(comparison)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.6 * columns, 0.6 + 2.7 * rows), dpi=130, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, match in zip(panels, shown, strict=False):
        _draw_courses(axes, match)
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.suptitle(f"{title}: updates (dashed) over minus the gradients of BPTT (solid)")
    return _png(figure)


def _draw_courses(axes: Axes, match: Match) -> None:
    by_size = match.descents.square().sum(0).argsort(descending=True)
    ranks = torch.linspace(0, (len(by_size) - 1) / 2, CURVES).long().unique()
    for index, entry in enumerate(by_size[ranks].tolist()):
        axes.plot(match.descents[:, entry].cpu(), color=f"C{index}", alpha=0.6)
        axes.plot(match.updates[:, entry].cpu(), color=f"C{index}", linestyle="--", linewidth=2)
    axes.set_title(f"{match.agreement.quantity}, relative RMSE {match.agreement.rmse:.2g}")
    axes.set_xlabel("step t")
    axes.grid(alpha=0.3)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def errors(comparison: Comparison, title: str) -> bytes:
    """A PNG image: histograms of the relative RMSE over the neurons of each layer, and over the synapses of each
    connection."""
    import_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    neurons, synapses = figure.subplots(1, 2)
    shown = _without_biases(comparison)
    for axes, name, matches in (
        (neurons, "neurons", comparison.neurons),
        (synapses, "synapses", shown[len(comparison.neurons) :]),
    ):
        for match in matches:
            found = match.rmse[~match.rmse.isnan()].cpu().numpy()
            counts, edges = np.histogram(found, bins=50, range=(0, 2))  # Axes.hist takes a second for so many
            label = f"{match.agreement.quantity}, mean {match.agreement.rmse:.2g}"
            axes.stairs(counts / max(1, len(found)), edges, label=label)
        axes.set(xlabel="relative RMSE", ylabel=f"share of the {name}")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return _png(figure)


def _without_biases(comparison: Comparison) -> Sequence[Match]:
    return [match for match in comparison.matches if not match.agreement.quantity.startswith("b")]


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
