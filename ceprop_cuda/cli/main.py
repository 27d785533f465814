"""The command line: ``ceprop train | eval | theorem | reproduce | bench | info``."""

from __future__ import annotations

import argparse
import logging
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from .. import ops
from ..arguments.options import Parser, folder, positive
from ..backends import FusedUnavailable
from ..bench.agreement import Disagreement
from ..bench.cases import QUICK
from ..bench.command import bench
from ..output.messages import has_bar, provide_stderr, spare_stderr
from ..records import Diverged
from ..reproduce import command as reproduce_command
from ..reproduce.runs import Ended
from ..theorem import command as theorem_command
from ..version import __version__
from . import train as of_train
from .shared import add_data_options, device_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit status: 0, or 1 if training diverged
    or a benchmark's contenders disagree, 2 if something that the user gave is wrong, 130 if interrupted, or what the
    shell says of another signal."""
    provide_stderr()
    args = _parser().parse_args(argv)
    # Where no bar can be drawn, a line per epoch takes its place.
    logging.basicConfig(level=logging.WARNING if has_bar() else logging.INFO, format="%(message)s")
    try:
        args.run(args)
    except (Diverged, Disagreement, reproduce_command.Incomplete) as error:
        return _fail(1, str(error))
    except OSError as error:
        return _fail(2, _in_words(error))
    except (ValueError, ModuleNotFoundError, FusedUnavailable) as error:
        return _fail(2, str(error))
    except Ended as error:
        return _fail(128 + error.signal, str(error))
    except KeyboardInterrupt as error:
        return _fail(130, str(error) or "interrupted")
    finally:
        spare_stderr()
    return 0


def _fail(status: int, message: str) -> int:
    with suppress(OSError, ValueError):  # where nothing can be written, the status tells
        print(f"ceprop: {' '.join(message.split())}", file=sys.stderr)
    return status


def _in_words(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename} cannot be used: {error.strerror}" if error.filename else error.strerror


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ceprop", description="Equilibrium propagation with fused kernels.")
    parser.add_argument("--version", action="version", version=f"ceprop {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a network; without options continual EP on the bundled digits")
    train.set_defaults(run=of_train.train)
    of_train.add_train_options(train)

    evaluate = commands.add_parser("eval", help="measure a trained network on its test set")
    evaluate.set_defaults(run=of_train.evaluate)
    of_train.add_eval_options(evaluate)

    theorem = commands.add_parser("theorem", help="compare the updates of EP with the gradients of BPTT step by step")
    theorem.set_defaults(run=theorem_command.run)
    theorem_command.add_options(theorem)
    add_data_options(theorem)

    reproduce = commands.add_parser("reproduce", help="run rows of the papers' tables again, several seeds each")
    reproduce.set_defaults(run=reproduce_command.run)
    reproduce_command.add_options(reproduce)
    add_data_options(reproduce)

    benchmark = commands.add_parser("bench", help="time the fused kernels against plain PyTorch")
    benchmark.set_defaults(run=_bench)
    chosen = benchmark.add_mutually_exclusive_group()
    chosen.add_argument("--quick", action="store_true", help="four presets, under a minute")
    chosen.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="as in a shell, e.g. 'c-ep-2h-*'")
    benchmark.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="(default: cpu; where the time of a step goes is measured there only)",
    )
    benchmark.add_argument("--threads", type=positive, nargs="+", metavar="N", help="of the CPU (default: 1 and all)")
    benchmark.add_argument("--rounds", type=positive, metavar="N", help="of timing (default: 5, with --quick 3)")
    benchmark.add_argument(
        "--out", type=folder, default=Path("bench"), metavar="DIR", help="of results (default: bench)"
    )

    info = commands.add_parser("info", help="versions, build and devices")
    info.set_defaults(run=_info)
    return parser


def _bench(args: argparse.Namespace) -> None:
    most = torch.get_num_threads()
    patterns, threads, rounds = (QUICK, [most], 3) if args.quick else (args.cases, sorted({1, most}), 5)
    if device_of(args.device).type == "cuda" and args.threads:
        raise ValueError("--threads is about the CPU, got --device cuda")
    bench(patterns, args.device, args.threads or threads, args.rounds or rounds, args.out, progress=has_bar())


def _info(_args: argparse.Namespace) -> None:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "ceprop_cuda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **ops.build_info(),
        "threads": torch.get_num_threads(),
        "devices": ", ".join(["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(gpus))]),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
