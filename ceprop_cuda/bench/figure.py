"""The picture of a run's results."""

from __future__ import annotations

import io
from collections.abc import Sequence

from ..output.figures import import_matplotlib
from .report import threads_in_words
from .suite import Row


def chart(rows: Sequence[Row]) -> bytes:
    """A PNG image: per case and number of threads, how many times as fast as the eager reference each contender is,
    and which part of the rate of torch.mm the fused kernels and the same algebra reach."""
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    cases = list(dict.fromkeys(row.case for row in rows))
    threads = sorted({row.threads for row in rows})
    found = {(row.case, row.threads, row.contender): row for row in rows}
    figure = Figure(figsize=(5 * len(threads) + 4, 1.6 + 0.42 * len(cases)), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2 * len(threads), sharey=True, squeeze=False)[0]
    for column, count in enumerate(threads):
        speed, rate = axes[2 * column : 2 * column + 2]
        if column > 0:
            speed.sharex(axes[0])
            rate.sharex(axes[1])
        title = threads_in_words(count)
        compared = [name for name in dict.fromkeys(row.contender for row in rows) if name != "eager"]
        height = 0.8 / len(compared)
        for index, name in enumerate(compared):
            bars: list[tuple[float, float, float]] = []  # place, times as fast as eager, fraction of torch.mm
            for place, case in enumerate(cases):
                ours, eager = found.get((case, count, name)), found.get((case, count, "eager"))
                if ours is None or ours.ms is None or ours.fraction_of_mm is None:
                    continue
                ratio = float("nan") if eager is None or eager.ms is None else eager.ms / ours.ms
                bars.append((place + (index - (len(compared) - 1) / 2) * height, ratio, ours.fraction_of_mm))
            places, ratios, fractions = zip(*bars, strict=True) if bars else ((), (), ())
            color = f"C{index}"
            # From 1, so that a slower contender's bar points to the left.
            speed.barh(places, [ratio - 1 for ratio in ratios], height, left=1, color=color, label=name)
            rate.barh(places, fractions, height, color=color, label=name)
        speed.set(xscale="log", xlabel="times as fast as eager", title=title)
        speed.axvline(1, color="black", linewidth=0.8)
        speed.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        speed.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        speed.xaxis.set_minor_formatter(NullFormatter())
        rate.set(xlabel="fraction of torch.mm's GFLOP/s", title=title)
        rate.axvline(1, color="black", linewidth=0.8)
        for axis in (speed, rate):
            axis.grid(axis="x", alpha=0.3)
            axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(cases)), cases)
    axes[0].set_ylim(len(cases) - 0.4, -0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(compared))
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
