"""The figure of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..output.figures import import_matplotlib


def curves(history: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG image of the training and, where there is one, the test error over the epochs.

    Args:
        history: one mapping per epoch with "epoch", "train_error" and "test_error" in percent, as
            :meth:`ceprop_cuda.Trainer.fit` returns them.
    """
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    drawn: list[float] = []
    for key, label in (("train_error", "training"), ("test_error", "test")):
        points = [(row["epoch"], row[key]) for row in history if row[key] is not None]
        if not points:
            continue
        epochs, errors = zip(*points, strict=True)
        drawn += errors
        axes.plot(epochs, errors, label=f"{label} (last: {errors[-1]:.2f} %)", marker="." if len(points) < 50 else "")
    axes.set(xlabel="epoch", ylabel="error (%)", title="Share of wrongly classified samples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if drawn:
        axes.legend()
        if min(drawn) > 0 and max(drawn) / min(drawn) > 5:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
    axes.grid(which="both", alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
