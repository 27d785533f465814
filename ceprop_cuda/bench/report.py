"""The tables of a run in Markdown, and what it has lost, in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..output.tables import markdown
from .breakdown import Part
from .suite import Row


def markdown_table(rows: Sequence[Row]) -> str:
    """A line per case and number of threads: the fused step, with what was predicted of it, and how many times as long
    the others take (jax's EP that of fused_sgd); nothing in the column of a contender that is not of a case's kind."""
    others = list(dict.fromkeys(row.contender for row in rows if row.contender != "fused"))
    predicted = ["predicted, ms"] if any(row.predicted_ms is not None for row in rows) else []
    ratios = [f"{name} / fused" for name in others]
    lines = [["case", "threads", "fused, ms", *predicted, *ratios, "GFLOP/s", "of mm"]]
    for (case, threads), group in groupby(rows, lambda row: (row.case, row.threads)):
        by_name = {row.contender: row for row in group}
        fused = by_name["fused"]
        cells = [case, str(threads or "GPU"), _between(fused.ms, fused.ms_q1, fused.ms_q3) or fused.status]
        if predicted:
            cells.append("" if fused.predicted_ms is None else f"{fused.predicted_ms:.3g}")
        for other in map(by_name.get, others):
            ratio = other and (_between(other.over_fused, other.over_fused_q1, other.over_fused_q3) or other.status)
            cells.append(ratio or "")
        if fused.needed_gflop_per_s is not None and fused.fraction_of_mm is not None:
            cells += [f"{fused.needed_gflop_per_s:.0f}", f"{fused.fraction_of_mm:.2f}"]
        lines.append(cells + [""] * (len(lines[0]) - len(cells)))
    return markdown(lines)


def lost(rows: Sequence[Row]) -> list[str]:
    """Where the fused kernels are slower than another contender, in words. That fused_sgd is no other one."""
    return [
        f"{row.case}, {threads_in_words(row.threads)}: {row.contender} takes {row.over_fused:.2f} of the time"
        for row in rows
        if row.over_fused is not None and row.over_fused < 1 and row.contender != "fused_sgd"
    ]


def threads_in_words(count: int) -> str:
    if count == 0:
        return "GPU"
    return "1 thread" if count == 1 else f"{count} threads"


def breakdown_table(parts: Sequence[Part]) -> str:
    """A line per case and number of threads, a column per part: milliseconds and share of the step."""
    names = list(dict.fromkeys(part.part for part in parts))
    lines = [["case", "threads", *names]]
    for (case, threads), group in groupby(parts, lambda part: (part.case, part.threads)):
        lines.append([case, str(threads), *(f"{part.ms:.3f} ({100 * part.share:.0f} %)" for part in group)])
    return markdown(lines)


def _between(median: float | None, low: float | None, high: float | None) -> str:
    """Median and quartiles to three digits, or "" if there are none."""
    if median is None or low is None or high is None:
        return ""
    # Rounded twice, for 1820 instead of 1.82e+03.
    median, low, high = (float(f"{value:.3g}") for value in (median, low, high))
    return f"{median:g} ({low:g} - {high:g})"
