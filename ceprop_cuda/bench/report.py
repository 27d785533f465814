"""What a run leaves behind: tables as CSV and as Markdown, and what they were measured on."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from .. import __version__, ops
from .breakdown import Part
from .suite import Row

SOURCES = Path(__file__).resolve().parents[2]


def environment(device: str = "cpu") -> dict[str, str]:
    """What measurements on ``device`` depend on. Names no host, user or folder."""
    build = ops.build_info()
    of_gpu = {}
    if device == "cuda":
        of_gpu = {
            "gpu": torch.cuda.get_device_name(),
            "driver": told_by_driver("driver_version"),
            "clocks of SM, at most, of memory": told_by_driver("clocks.sm,clocks.max.sm,clocks.mem"),
            "cuda": str(torch.version.cuda),
        }
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "ceprop_cuda": __version__,
        "kernels": build["cpu_kernels"] if device == "cpu" else f"CUDA {build['cuda']}",
        "compiler": build["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        **of_gpu,
    }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def told_by_driver(fields: str) -> str:
    """What NVIDIA's driver says of these fields of the first GPU; "unknown" if its tool does not tell."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True)
    except OSError:  # no such tool
        return "unknown"
    return told.stdout.splitlines()[0] if told.returncode == 0 and told.stdout else "unknown"


def commit() -> str:
    """The commit of the sources that this package runs from, "-dirty" if they differ from it. Of sources without a
    repository what the environment variable COMMIT says, or "unknown"."""

    given = os.environ.get("COMMIT") or "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(SOURCES), *arguments], capture_output=True, text=True).stdout.strip()

    try:
        # An installed package may lie inside another project's repository.
        if not (SOURCES / ".git").exists():
            return given
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except OSError:  # no git
        return given


def write_csv(path: Path, rows: Sequence[Any], environment: dict[str, str]) -> None:
    """One or more ``rows`` of a dataclass, below a line of its columns and a line '# key: value' for each fact."""
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in environment.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            writer.writerow(f"{value:.5g}" if isinstance(value, float) else value for value in asdict(row).values())


def read_rows(path: Path, of: type = Row) -> list[Any]:
    """What :func:`write_csv` wrote of rows, which are of this dataclass."""
    with path.open(newline="") as file:
        table = csv.DictReader(line for line in file if not line.startswith("#"))
        return [of(**{f.name: _parsed(line[f.name], str(f.type)) for f in fields(of)}) for line in table]


def _parsed(text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "int":
        return int(text)
    return float(text) if text else None


def markdown_table(rows: Sequence[Row]) -> str:
    """A line per case and number of threads: the fused step, with what was predicted of it, and how many times as long
    the others take; nothing in the column of a contender that is not of a case's kind."""
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
    """Where the fused kernels are slower than another contender, in words."""
    return [
        f"{row.case}, {threads_in_words(row.threads)}: {row.contender} takes {row.over_fused:.2f} of the time"
        for row in rows
        if row.over_fused is not None and row.over_fused < 1
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


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of ``lines`` of cells, the first of which names the columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
