"""What ``ceprop bench`` does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tqdm.auto import tqdm

from . import breakdown, suite
from .cases import chosen_cases
from .figure import chart
from .report import breakdown_table, environment, lost, markdown_table, threads_in_words, write_csv


def bench(patterns: Sequence[str], threads: Sequence[int], rounds: int, out: Path, progress: bool) -> None:
    """Benchmark the cases named by shell ``patterns`` and print tables.

    Writes cpu.csv and cpu.png and, for those of the cases that have one, breakdown.csv into ``out``; the tables grow
    with every case, so that an interruption leaves what was measured.

    Raises:
        ValueError: a pattern matches no case.
        Disagreement: a contender computes something else than the reference; its case was not timed.
    """
    runs = list(product(chosen_cases(patterns), threads))
    out.mkdir(parents=True, exist_ok=True)
    facts = environment()  # before anything below makes the sources' folder dirty
    rows: list[suite.Row] = []
    parts: list[breakdown.Part] = []
    with tqdm(runs, unit="run", disable=not progress) as bar:
        for case, count in bar:
            bar.set_description(f"{case.name}, {threads_in_words(count)}")
            rows += suite.run(case, count, rounds)
            write_csv(out / "cpu.csv", rows, facts)
            if case.name in breakdown.CASES:
                parts += breakdown.run(case, count, rounds)
                write_csv(out / "breakdown.csv", parts, facts)
    (out / "cpu.png").write_bytes(chart(rows))
    print("".join(f"{key}: {value}\n" for key, value in facts.items()))
    print(markdown_table(rows))
    slower = lost(rows)
    print(f"\nfused kernels are slower in {len(slower)} comparisons", *slower, sep="\n- " if slower else "")
    if parts:
        print(f"\n{breakdown_table(parts)}")
    print(f"\nresults in {out}")
