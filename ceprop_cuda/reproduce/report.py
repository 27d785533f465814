"""What was measured beside what was published, as tables and as a figure."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..output.figures import import_matplotlib
from ..output.tables import markdown
from .rows import Published
from .runs import Run


@dataclass(frozen=True)
class Result:
    """A row of the tables. Errors in percent, mean and standard deviation over the complete runs, after the last epoch;
    None where there are too few."""

    row: str
    published_test: float | None
    published_deviation: float | None
    published_train: float | None
    test: float | None
    test_deviation: float | None
    train: float | None  # of the free phases while training in the last epoch
    train_deviation: float | None
    runs: int  # complete ones
    planned: int
    epochs: int
    minutes: float | None  # of training, without tests, per run
    settings: str
    commits: str


@dataclass(frozen=True)
class Epoch:
    """What an epoch of a complete run came to; errors in percent."""

    row: str
    data: str
    seed: int
    epoch: int
    train_error: float | None
    test_error: float | None


def epochs_of(runs: Sequence[Run]) -> list[Epoch]:
    """All epochs of the complete ones of ``runs``."""
    return [
        Epoch(run.name, run.data, run.seed, number, metrics["train_error"], metrics["test_error"])
        for run in runs
        if run.is_complete()
        for number, metrics in enumerate(run.history(), 1)
    ]


def results(runs: Sequence[Run]) -> list[Result]:
    """A result for each row, number of epochs and data set of ``runs``, in their order."""
    return [_result(group) for group in _groups(runs)]


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.name, run.epochs, run.data), []).append(run)
    return list(groups.values())


def _published(run: Run) -> Published | None:
    return run.row.published if run.data == "mnist" else None


def _result(runs: Sequence[Run]) -> Result:
    published = _published(runs[0])
    complete = [run for run in runs if run.is_complete()]
    ends = [run.history()[-1] for run in complete]
    test = [end["test_error"] for end in ends if end["test_error"] is not None]
    train = [end["train_error"] for end in ends if end["train_error"] is not None]
    minutes = [sum(metrics["seconds"] for metrics in run.history()) / 60 for run in complete]
    return Result(
        row=runs[0].name,
        published_test=published.test if published else None,
        published_deviation=published.deviation if published else None,
        published_train=published.train if published else None,
        test=_mean(test),
        test_deviation=_deviation(test),
        train=_mean(train),
        train_deviation=_deviation(train),
        runs=len(complete),
        planned=len(runs),
        epochs=runs[0].epochs,
        minutes=_mean(minutes),
        settings=_settings(complete[0]) if complete else "",
        commits=" ".join(dict.fromkeys(commit for run in complete for commit in run.made_by()["commits"])),
    )


def _settings(run: Run) -> str:
    """The rule and its numbers as config.json has them."""
    config = run.config()
    rule = config["rule"]
    free_steps, nudged_steps = config["steps"]
    beta = f" beta {rule['beta']:g}" if "beta" in rule else ""
    rates = " ".join(f"{rate:g}" for rate in config["lr"])
    unusual = " asynchronous" if config["schedule"] == "asynchronous" else ""
    unusual += "" if config["nudging"] == "positive" else f" {config['nudging'].replace('_', ' ')}"
    unusual += "" if config["tolerance"] is None else f" tolerance {config['tolerance']:g}"
    unusual += "" if config["gate"] == "none" else f" gate {config['gate']}"
    unusual += "" if config["device"] == "cpu" else f" on {config['device']}"
    phases = f"T {free_steps} K {nudged_steps}{beta} B {config['batch']}"
    return f"{rule['name']} on {config['data']}: {phases} lr {rates}{unusual}"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def table(found: Sequence[Result], facts: Mapping[str, str]) -> str:
    """As Markdown, above a list of the settings."""
    lines = [
        ["row", "published test (train), %", "measured test (train), %", "complete runs", "epochs", "minutes a run"]
    ]
    for result in found:
        published = _error(result.published_test, result.published_deviation)
        measured = _error(result.test, result.test_deviation)
        train = _error(result.train, result.train_deviation)
        lines.append(
            [
                result.row,
                published + (f" ({result.published_train:.2f})" if result.published_train is not None else ""),
                measured + (f" ({train})" if train else ""),
                f"{result.runs} of {result.planned}",
                str(result.epochs),
                "" if result.minutes is None else f"{result.minutes:.3g}",
            ]
        )
    settings = [f"- {result.row}: {result.settings}; commit {result.commits}" for result in found if result.runs]
    where = ", ".join(f"{key} {value}" for key, value in facts.items())
    return "\n".join([markdown(lines), "", *settings, "", where, ""])


def _error(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} +- {deviation:.2f}"


def curves(runs: Sequence[Run]) -> bytes:
    """A PNG image: training and test error of each row over the epochs, mean over its complete runs and, shaded, their
    range; published test errors as crosses at the end. Without the sweep of angles, which has a figure of its own."""
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2)
    for index, group in enumerate(_groups([run for run in runs if run.row.angle is None])):
        complete = [run.history() for run in group if run.is_complete()]
        if not complete:
            continue
        name, published = group[0].name, _published(group[0])
        epochs = range(1, len(complete[0]) + 1)
        for axes, key in zip(panels, ("test_error", "train_error"), strict=True):
            columns = [[metrics[key] for metrics in epoch] for epoch in zip(*complete, strict=True)]
            means = [statistics.fmean(column) for column in columns]
            axes.plot(epochs, means, color=f"C{index}", label=f"{name} ({len(complete)} runs)")
            axes.fill_between(epochs, list(map(min, columns)), list(map(max, columns)), color=f"C{index}", alpha=0.2)
        if published is not None:
            panels[0].errorbar(epochs[-1], published.test, published.deviation, color=f"C{index}", marker="x")
            if published.train is not None:
                panels[1].plot(epochs[-1], published.train, color=f"C{index}", marker="x")
    for axes, title in zip(panels, ("test error", "training error"), strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="%", title=f"{title}; crosses: published", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="both", alpha=0.3)
    if panels[0].lines:
        panels[0].legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
