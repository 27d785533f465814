"""What was predicted, what came out, and their ratio: from what a run of run.sh left in a folder, however far it came.

`report.py FOLDER` prints tables in Markdown and writes the first as report.csv.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from itertools import groupby
from pathlib import Path

PREDICTIONS = Path(__file__).with_name("predictions.csv")
OF_MACHINE_CODE = Path(__file__).resolve().parents[1] / "results" / "sass_teams.csv"
FAR = 1.5  # a ratio beyond this, or below its inverse, is marked
Values = dict[str, tuple[float, str]]  # by name, with the unit


@dataclass(frozen=True)
class Line:
    """Of the table. Without `measured` and `ratio` where the run has not come to it."""

    name: str
    unit: str
    predicted: float
    measured: float | None
    ratio: float | None
    far: str  # "x" or ""
    source: str  # of the prediction


def lines_of(path: Path) -> list[dict[str, str]]:
    """Of a CSV below lines of facts, which may end within its last line; nothing if there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        table = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [line for line in table if None not in line.values()]


def measured(folder: Path) -> Values:
    """Microbenchmarks by their names, steps as free/CASE/ENGINE, nudged/CASE/ENGINE and once/CASE/ENGINE."""
    found: Values = {line["name"]: (float(line["value"]), line["unit"]) for line in lines_of(folder / "micro.csv")}
    for line in lines_of(folder / "cuda_steps.csv"):
        for kind in ("free", "nudged", "once"):
            found[f"{kind}/{line['case']}/{line['engine']}"] = (float(line[f"{kind}_us"]), "us")
    return found


def predictions(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    """Name, value, unit and source of those that are kept, of those by machine code, and of the planner's."""
    for line in lines_of(PREDICTIONS):
        yield line["name"], float(line["value"]), line["unit"], line["source"]
    for line in lines_of(OF_MACHINE_CODE):
        kind = line["phase"].partition(",")[0]
        predicted = int(line["rounds"]) * float(line["step_us"])
        yield f"{kind}/{line['case']}/teams", predicted, "us", "model of the machine code (benchmarks/sass)"
    for line in lines_of(folder / "cuda_steps.csv"):
        for kind in ("free", "nudged"):
            if (predicted := float(line[f"predicted_{kind}_us"])) > 0:
                yield f"{kind}/{line['case']}/{line['engine']}", predicted, "us", "planner"


def compared(folder: Path) -> list[Line]:
    values = measured(folder)
    table = []
    for name, predicted, unit, source in predictions(folder):
        value, unit_there = values.get(name, (None, unit))
        if unit != unit_there:
            raise ValueError(f"{name} is predicted in {unit!r} and measured in {unit_there!r}")
        ratio = None if value is None else value / predicted
        far = ratio is not None and not 1 / FAR <= ratio <= FAR
        table.append(Line(name, unit, predicted, value, ratio, "x" if far else "", source))
    return table


def facts(folder: Path) -> list[tuple[str, str]]:
    """What measurements depend on, as steps.sh wrote it into the log."""
    return re.findall(r"^-- (.+?): (.*)$", _log(folder), re.MULTILINE)


def steps(folder: Path) -> list[tuple[str, str]]:
    """What became of each, from there as well."""
    outcomes = "ok|failed|timed out|stopped|left out|not compiled"
    return re.findall(rf"^== ([^:\n]+): ((?:{outcomes})\b.*)$", _log(folder), re.MULTILINE)


def _log(folder: Path) -> str:
    log = folder / "run.log"
    return log.read_text(errors="replace") if log.exists() else ""


def write(folder: Path, table: list[Line]) -> None:
    with (folder / "report.csv").open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in facts(folder))
        file.writelines(f"# step {name}: {what}\n" for name, what in steps(folder))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Line))
        writer.writerows([_short(cell) for cell in astuple(line)] for line in table)


def markdown(lines: list[list[str]]) -> str:
    """A table of ``lines`` of cells, the first of which names the columns."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def of_training_steps(folder: Path) -> list[list[str]]:
    """Milliseconds of a training step, a column a contender; nothing if no case was timed."""
    rows = lines_of(folder / "cuda.csv")
    names = list(dict.fromkeys(row["contender"] for row in rows))
    table = [["case, ms", *names]]
    for case, group in groupby(rows, lambda row: row["case"]):
        times = {row["contender"]: row["ms"] or row["status"] for row in group}
        table.append([case, *(times.get(name, "") for name in names)])
    return table if rows else []


def _short(cell: object) -> str:
    return "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder: Path = parser.parse_args().folder
    table = compared(folder)
    write(folder, table)
    if of_training := of_training_steps(folder):
        print(markdown(of_training), end="\n\n")
    shown = [[_short(cell) or "-" for cell in astuple(line)] for line in table]
    print(markdown([["name", "unit", "predicted", "measured", "ratio", "far", "source"], *shown]), end="\n\n")
    print(markdown([["step", "outcome"], *(list(step) for step in steps(folder))]))


if __name__ == "__main__":
    main()
