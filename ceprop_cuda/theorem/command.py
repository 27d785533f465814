"""What ``ceprop theorem`` does."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..arguments.checks import seed_number, whole_number
from ..arguments.choices import Backend, words
from ..arguments.options import folder
from ..data import DATASETS, Dataset, load
from ..environment import environment
from ..output.messages import warn
from ..output.tables import markdown, write_csv
from ..presets import PRESETS
from ..training import Rule
from .cases import CASES
from .comparison import Comparison, compare
from .figures import courses, errors

SETTLED = 1e-6  # largest change of a unit within a free step that the comparison does not warn of
COLUMNS = {"rmse": 1, "rmse_median": 1, "sign_disagreement": 100, "sign_agreement": 100, "angle": 1}


@dataclass(frozen=True)
class Row:
    """A line of the table in theorem.csv: :class:`ceprop_cuda.theorem.Agreement` of one batch; "all parameters"
    are one vector."""

    batch: int  # from 1
    quantity: str
    rmse: float
    rmse_median: float
    sign_disagreement: float
    sign_agreement: float
    angle: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "cases:\n" + "".join(f"  {name:<11}{case.source}\n" for name, case in CASES.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--case", choices=CASES, metavar="NAME", help="network and settings, see below")
    chosen.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help="of `ceprop train`, before training; not continual EP nudged both ways",
    )
    parser.add_argument(
        "--data", choices=DATASETS, help="images (default: of a case digits, enlarged to 28x28, of a preset its own)"
    )
    parser.add_argument("--steps", type=int, nargs=2, metavar=("T", "K"), help="free and nudged (default: the case's)")
    parser.add_argument("--beta", type=float, metavar="X", help="strength of the nudge (default: the case's)")
    parser.add_argument("--batch", type=int, metavar="B", help="samples in a batch (default: the case's)")
    parser.add_argument(
        "--batches", type=int, default=1, metavar="N", help="to average over (default: 1; the papers take 20)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and samples (default: 0)")
    parser.add_argument(
        "--backend", choices=words(Backend), default="auto", help="what runs the free phase (default: auto)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=folder, metavar="DIR", help="of figures and tables (default: theorem/NAME)")


def run(args: argparse.Namespace) -> None:
    """Compare on every batch, print the table of means, and write theorem.csv and, of the first batch, updates.npz,
    courses.png and errors.png.

    Raises ValueError, OSError or FusedUnavailable if something that the user gave is wrong, before anything is written.
    """
    count = whole_number("--batches", args.batches, 1)
    if args.threads is not None:
        torch.set_num_threads(whole_number("--threads", args.threads, 1))
    name = args.case or args.preset
    torch.manual_seed(seed_number("--seed", args.seed))
    problem = _of_case(args, count) if args.case else _of_preset(args, count)
    rule = problem.rule
    settings = rule.settings()
    out = args.out or Path("theorem", name)
    facts = {
        "case" if args.case else "preset": name,
        "source": problem.source,
        "data": problem.data,
        **{name: str(settings[name]) for name in ("free_steps", "nudged_steps", "beta")},
        "lr": " ".join(map(str, settings.get("lr", ()))),
        "batch": str(problem.batch),
        "seed": str(args.seed),
    }
    rows: list[Row] = []
    moved = 0.0
    for number, (x, y) in enumerate(tqdm(problem.batches, total=count, unit="batch", disable=None), 1):
        found = compare(rule, x, y)
        moved = max(moved, found.moved)
        rows += _rows(number, found)
        if number == 1:
            out.mkdir(parents=True, exist_ok=True)
            np.savez(out / "updates.npz", **_arrays(found))
            (out / "courses.png").write_bytes(courses(found, name))
            (out / "errors.png").write_bytes(errors(found, name))
    facts["moved"] = f"{moved:.2g}"
    write_csv(out / "theorem.csv", rows, facts | environment())
    if moved > SETTLED:
        warn(
            f"the free phase has not settled: a unit still moves by {moved:.1e} in a step, and the theorem speaks of "
            "settled states (more free steps by --steps, or another --seed)"
        )
    print("".join(f"{name}: {value}\n" for name, value in facts.items()))
    print(_table(rows))
    print(f"\nresults in {out}")


class Problem(NamedTuple):
    """What is compared, and on what."""

    rule: Rule
    batches: Iterable[tuple[Tensor, Tensor]]
    batch: int
    data: str
    source: str


def _of_case(args: argparse.Namespace, count: int) -> Problem:
    case = replace(CASES[args.case], **_changes(args, "batch"))
    data = "random" if case.is_toy else args.data or "digits"
    dataset = None if case.is_toy else _load(args, data)
    if dataset is not None and dataset.train_x.shape[1] != 1:
        raise ValueError(f"the cases take grey images, those of {data} have colours")
    net = case.network(10 if dataset is None else dataset.classes)
    return Problem(case.rule(net, args.backend), case.batches(dataset, count), case.batch, data, case.source)


def _of_preset(args: argparse.Namespace, count: int) -> Problem:
    preset = replace(PRESETS[args.preset], **_changes(args, "batch_size"))
    data = args.data or preset.data
    dataset = _load(args, data)
    net = preset.network(tuple(dataset.train_x.shape[1:]), dataset.classes).double()
    rule = preset.rule(net, args.backend, gradients_only=True)
    batches = islice(dataset.train_batches(preset.batch_size, args.seed), count)
    return Problem(rule, ((x.double(), y) for x, y in batches), preset.batch_size, data, preset.source)


def _load(args: argparse.Namespace, data: str) -> Dataset:
    return load(data, args.data_dir or "data", args.download)


def _changes(args: argparse.Namespace, batch: str) -> dict[str, Any]:
    """What the options change of a case or a preset, by the names of its fields; ``batch`` is one of them."""
    changes = {} if args.beta is None else {"beta": args.beta}
    if args.batch is not None:
        changes[batch] = whole_number("--batch", args.batch, 1)
    if args.steps is not None:
        changes["free_steps"], changes["nudged_steps"] = args.steps
    return changes


def _rows(batch: int, comparison: Comparison) -> list[Row]:
    rows = [Row(batch, **asdict(agreement)) for agreement in comparison.agreements]
    nan = math.nan
    return [*rows, Row(batch, "all parameters", nan, nan, nan, nan, comparison.angle)]


def _arrays(comparison: Comparison) -> dict[str, Any]:
    """Of every layer and parameter: what :class:`ceprop_cuda.theorem.Match` holds, by "W[0].updates" and so on."""
    arrays = {}
    for match in comparison.matches:
        for field in fields(match):
            value = getattr(match, field.name)
            if isinstance(value, Tensor):
                arrays[f"{match.agreement.quantity}.{field.name}"] = value.cpu().numpy()
    return arrays


def _table(rows: Sequence[Row]) -> str:
    """A line per layer and parameter: means over the batches, and the standard deviation where there are some."""
    lines = [
        ["", "relative RMSE", "its median", "opposed, % of steps", "sums of the same sign, %", "angle of the sums"]
    ]
    for quantity in dict.fromkeys(row.quantity for row in rows):
        of_batches = [row for row in rows if row.quantity == quantity]
        lines.append([quantity])
        for name, scale in COLUMNS.items():
            lines[-1].append(_mean_and_deviation([scale * getattr(row, name) for row in of_batches]))
    return markdown(lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.2g}"
