"""What ``ceprop theorem`` does."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .bench.report import environment, markdown, write_csv
from .data import load
from .network import BACKENDS, log, whole_number
from .theorem import Comparison, compare
from .theorem_cases import CASES, GREY, Case
from .theorem_figures import courses, errors

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
    parser.add_argument("--case", choices=CASES, required=True, metavar="NAME", help="network and settings, see below")
    parser.add_argument("--data", choices=GREY, default="digits", help="images (default: digits, enlarged to 28x28)")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("T", "K"), help="free and nudged (default: the case's)")
    parser.add_argument("--beta", type=float, metavar="X", help="strength of the nudge (default: the case's)")
    parser.add_argument("--batch", type=int, metavar="B", help="samples in a batch (default: the case's)")
    parser.add_argument("--batches", type=int, default=1, metavar="N", help="to average over; the papers' recipe: 20")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and samples (default: 0)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the free phase (default: auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of figures and tables (default: theorem/NAME)")


def run(args: argparse.Namespace) -> None:
    """Compare on every batch, print the table of means, and write theorem.csv and, of the first batch, updates.npz,
    courses.png and errors.png.

    Raises ValueError, OSError or FusedUnavailable if something that the user gave is wrong, before anything is written.
    """
    case = _case(args)
    count = whole_number("--batches", args.batches, 1)
    dataset = None if case.is_toy else load(args.data, args.data_dir or "data", args.download)
    torch.manual_seed(args.seed)
    net = case.network(10 if dataset is None else dataset.classes)
    rule = case.rule(net, args.backend)
    out = args.out or Path("theorem", args.case)
    facts = {
        "case": args.case,
        "source": case.source,
        "data": "random" if dataset is None else args.data,
        "free_steps": str(rule.free_steps),
        "nudged_steps": str(rule.nudged_steps),
        "beta": str(rule.beta),
        "lr": str(case.lr),
        "batch": str(case.batch),
        "seed": str(args.seed),
    }
    rows: list[Row] = []
    moved = 0.0
    for number, (x, y) in enumerate(tqdm(case.batches(dataset, count), total=count, unit="batch", disable=None), 1):
        found = compare(rule, x, y)
        moved = max(moved, found.moved)
        rows += _rows(number, found)
        if number == 1:
            out.mkdir(parents=True, exist_ok=True)
            np.savez(out / "updates.npz", **_arrays(found))
            (out / "courses.png").write_bytes(courses(found, args.case))
            (out / "errors.png").write_bytes(errors(found, args.case))
    facts["moved"] = f"{moved:.2g}"
    write_csv(out / "theorem.csv", rows, facts | environment())
    if moved > SETTLED:
        log.warning(
            f"the free phase has not settled: a unit still moves by {moved:.1e} in a step, and the theorem speaks of "
            "settled states (more free steps by --steps, or another --seed)"
        )
    print("".join(f"{name}: {value}\n" for name, value in facts.items()))
    print(_table(rows))
    print(f"\nresults in {out}")


def _case(args: argparse.Namespace) -> Case:
    """The case with what the options change of it."""
    changes = {"beta": args.beta, "batch": args.batch}
    if args.steps is not None:
        changes["free_steps"], changes["nudged_steps"] = args.steps
    case = replace(CASES[args.case], **{name: value for name, value in changes.items() if value is not None})
    whole_number("--batch", case.batch, 1)
    return case


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
