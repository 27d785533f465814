"""Tables of Markdown, and the pages that they stand on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

MARK = "## Tables\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(description: str | None, report: Callable[[], str], script: Path) -> None:
    """Prints the tables, and with --update puts them into the page beside ``script``, below its text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    page = script.with_suffix(".md")
    parser.add_argument("--update", action="store_true", help=f"put the tables into {page.name}")
    args = parser.parse_args()
    tables = report()
    print(tables)
    if args.update:
        text = page.read_text().partition(MARK)[0]
        page.write_text(f"{text}{MARK}\n`python benchmarks/{script.parent.name}/{script.name}`\n\n{tables}\n")
