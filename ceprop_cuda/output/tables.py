"""Tables of results, as CSV and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any


def write_csv(path: Path, rows: Sequence[Any], environment: dict[str, str]) -> None:
    """One or more ``rows`` of a dataclass, below a line of its columns and a line '# key: value' for each fact."""
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in environment.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            writer.writerow(f"{value:.5g}" if isinstance(value, float) else value for value in asdict(row).values())


def read_rows(path: Path, of: type) -> list[Any]:
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


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of ``lines`` of cells, the first of which names the columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
