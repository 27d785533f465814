"""What ``ceprop reproduce`` does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..arguments.checks import whole_number
from ..arguments.options import folder
from ..data import DATASETS
from ..environment import environment
from ..output.figures import save_figure
from ..output.files import in_words, lock
from ..output.messages import has_bar
from ..output.tables import write_csv
from .angles import angle_figure, sweep
from .report import curves, epochs_of, results, table
from .rows import ROWS, chosen_rows
from .runs import Run, found, planned, train


class Incomplete(RuntimeError):
    """Some runs failed; the others are complete and reported."""


def add_options(parser: argparse.ArgumentParser) -> None:
    listed = ", ".join(ROWS)
    parser.add_argument("--rows", default="", metavar="A,B,...", help=f"to train (default: only report), of {listed}")
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="runs of each row: seeds 0 .. N-1 (default: 5)"
    )
    parser.add_argument("--data", choices=DATASETS, help="data set (default: each preset's)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of every run (default: the presets')")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a run (default: all over --jobs)")
    parser.add_argument("--device", metavar="NAME", help="of `ceprop train` (default: cpu)")
    parser.add_argument("--out", type=folder, default=Path("reproduce"), metavar="DIR", help="(default: reproduce)")


def run(args: argparse.Namespace) -> None:
    """Complete the runs ``out/ROW/seed-N`` and report on them and all others in ``out``: results.csv, results.md,
    curves.png and, once a run is complete, curves.csv, written again after every run; at the end angles.csv and
    angles.png of rows that set the angle.

    Raises:
        ValueError: a wrong option, or a folder that holds another run; nothing was changed.
        BlockingIOError: another process does the same in ``out``.
        Incomplete: some runs failed, e.g. because their states diverged.
        Ended: by a signal, with a hint; the same command goes on.
    """
    rows = chosen_rows(args.rows)
    seeds = whole_number("--seeds", args.seeds, 1)
    jobs = whole_number("--jobs", args.jobs, 1)
    if args.epochs is not None:
        whole_number("--epochs", args.epochs, 1)
    threads = max(1, torch.get_num_threads() // jobs) if args.threads is None else args.threads
    whole_number("--threads", threads, 1)
    runs = planned(args.out, rows, seeds, args.epochs, args.data)
    for each in runs:
        each.refuse_another()
    if not runs and not found(args.out):
        raise ValueError(f"there is no run in {args.out}: name rows to train by --rows, of {', '.join(ROWS)}")
    with lock(args.out):
        _train_and_report(args, runs, jobs, threads)


def _train_and_report(args: argparse.Namespace, runs: list[Run], jobs: int, threads: int) -> None:
    facts = environment()

    def all_runs() -> list[Run]:
        others = [other for other in found(args.out) if other.folder not in {each.folder for each in runs}]
        return sorted(runs + others, key=lambda each: (list(ROWS).index(each.name), each.seed))

    def report() -> str:
        measured = results(all_runs())
        text = table(measured, facts)
        epochs = epochs_of(all_runs())
        with in_words(args.out, "written"):
            write_csv(args.out / "results.csv", measured, facts)
            (args.out / "results.md").write_text(text)
            save_figure(args.out / "curves.png", lambda: curves(all_runs()))
            if epochs:
                write_csv(args.out / "curves.csv", epochs, facts)
        return text

    options = ["--threads", str(threads)]
    options += ["--data-dir", str(args.data_dir)] if args.data_dir is not None else []
    options += ["--download"] if args.download else []
    options += ["--device", args.device] if args.device is not None else []
    failed = train(runs, jobs, options, has_bar(), report)
    print(report())
    points = sweep(all_runs(), args.data_dir)
    if points:
        with in_words(args.out, "written"):
            write_csv(args.out / "angles.csv", points, facts)
        save_figure(args.out / "angles.png", lambda: angle_figure(points))
    print(f"results in {args.out}")
    if failed:
        told = "; ".join(f"{each.name} seed {each.seed}: {reason}" for each, reason in failed.items())
        raise Incomplete(f"{len(failed)} of {len(runs)} runs failed: {told}")
