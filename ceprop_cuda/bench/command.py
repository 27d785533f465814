"""What ``ceprop bench`` does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tqdm.auto import tqdm

from ..backends import FusedUnavailable
from ..environment import environment
from ..output.tables import write_csv
from . import breakdown, suite
from .cases import chosen_cases
from .figure import chart
from .report import breakdown_table, lost, markdown_table, threads_in_words


def bench(patterns: Sequence[str], device: str, threads: Sequence[int], rounds: int, out: Path, progress: bool) -> None:
    """Benchmark the cases named by shell ``patterns`` on ``device``, "cpu" or "cuda", and print tables.

    Each runs once for every number of ``threads`` on the CPU, once on a GPU. Writes cpu.csv and cpu.png, or cuda.csv
    and cuda.png, and, for those of the cases that have one on the CPU, breakdown.csv into ``out``; the tables grow with
    every case, so that an interruption leaves what was measured.

    Raises:
        ValueError: a pattern matches no case.
        FusedUnavailable: the kernels can run none of the cases on this device; those that they refuse beside others are
            named below the tables.
        Disagreement: a contender computes something else than the reference; its case was not timed.
    """
    runs = list(product(chosen_cases(patterns, device), threads if device == "cpu" else [0]))
    out.mkdir(parents=True, exist_ok=True)
    facts = environment(device)  # before anything below makes the sources' folder dirty
    rows: list[suite.Row] = []
    parts: list[breakdown.Part] = []
    refused: dict[str, FusedUnavailable] = {}
    with tqdm(runs, unit="run", disable=not progress) as bar:
        for case, count in bar:
            bar.set_description(f"{case.name}, {threads_in_words(count)}")
            try:
                rows += suite.run(case, count, rounds)
            except FusedUnavailable as error:
                refused[case.name] = error
                continue
            write_csv(out / f"{device}.csv", rows, facts)
            if device == "cpu" and case.name in breakdown.CASES:
                parts += breakdown.run(case, count, rounds)
                write_csv(out / "breakdown.csv", parts, facts)
    if refused and not rows:
        raise next(iter(refused.values()))
    (out / f"{device}.png").write_bytes(chart(rows))
    print("".join(f"{key}: {value}\n" for key, value in facts.items()))
    print(markdown_table(rows))
    if any(row.contender == "fused_sgd" for row in rows):
        print("\nfused_sgd and jax move EP's weights, the others leave gradients: there jax is compared with fused_sgd")
    slower = lost(rows)
    print(f"\nfused kernels are slower in {len(slower)} comparisons", *slower, sep="\n- " if slower else "")
    for name, reason in refused.items():
        print(f"{name} was not run: {reason}")
    if parts:
        print(f"\n{breakdown_table(parts)}")
    print(f"\nresults in {out}")
