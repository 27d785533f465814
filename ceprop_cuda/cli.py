"""The command line: ``ceprop train | eval | theorem | reproduce | bench | info``."""

from __future__ import annotations

import argparse
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from . import __version__, ops, theorem_command
from .backends import BACKENDS, FusedUnavailable
from .bench.agreement import Disagreement
from .bench.cases import QUICK
from .bench.command import bench
from .checkpoint import refuse_another_network
from .checks import one_of
from .data import DATASETS, Dataset, load, seed_number
from .messages import has_bar, provide_stderr, spare_stderr
from .options import Parser, folder, positive
from .presets import PRESETS, Preset
from .reproduce import command as reproduce_command
from .reproduce.runs import Ended
from .rules import NUDGINGS
from .run_directory import read_checkpoint
from .run_settings import new_settings, preset_of, settings_of, settings_to_resume
from .spec.dynamics import SCHEDULES
from .spec.gates import GATES
from .trainer import Diverged, Trainer

TEST_BATCH = 500  # samples; only changes how long a test takes


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

    train = commands.add_parser(
        "train",
        help="train a network; without options continual EP on the bundled digits",
        epilog="presets:\n" + "".join(f"  {name:<16}{preset.source}\n" for name, preset in PRESETS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train)
    train.add_argument("--preset", choices=PRESETS, metavar="NAME", help="settings, see below (default: digits)")
    train.add_argument(
        "--rule",
        choices=("bptt",),
        help="learn by the gradient of BPTT, as EP's yardstick (default: the preset's rule)",
    )
    train.add_argument("--data", choices=DATASETS, help="data set (default: the preset's)")
    _add_data_options(train)
    train.add_argument("--epochs", type=positive, metavar="N", help="epochs in all (default: the preset's)")
    train.add_argument("--batch", type=positive, metavar="N", help="samples in a batch (default: the preset's)")
    train.add_argument(
        "--lr",
        type=float,
        nargs="+",
        metavar="X",
        help="learning rate per connection, input side first (default: the preset's)",
    )
    train.add_argument(
        "--steps", type=int, nargs=2, metavar=("T", "K"), help="free and nudged steps (default: the preset's)"
    )
    train.add_argument(
        "--angle",
        type=float,
        metavar="DEG",
        help="between free feedback and forward weights at first (default: the preset's)",
    )
    train.add_argument("--beta", type=float, metavar="X", help="strength of the nudge (default: the preset's)")
    train.add_argument("--nudging", choices=NUDGINGS, help="signs of beta (default: the preset's)")
    train.add_argument(
        "--schedule", choices=SCHEDULES, help="order of moves; asynchronous needs half the steps (default: preset's)"
    )
    train.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="end a phase once no unit moves more than this (default: the preset's, of most none)",
    )
    train.add_argument(
        "--gate",
        choices=["none" if gate is None else gate for gate in GATES],
        help="factor on what units of free feedback have moved by (default: the preset's)",
    )
    train.add_argument("--seed", type=int, metavar="S", help="of weights, signs of beta and orders (default: 0)")
    train.add_argument("--backend", choices=BACKENDS, help="what runs the network (default: auto)")
    _add_device_option(train)
    train.add_argument("--out", type=folder, metavar="DIR", help="run directory (default: a new one under runs/)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out, by its own settings")
    train.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's)")

    evaluate = commands.add_parser("eval", help="measure a trained network on its test set")
    evaluate.set_defaults(run=_eval)
    evaluate.add_argument("--run", dest="out", type=folder, required=True, metavar="DIR", help="run directory")
    _add_device_option(evaluate)
    _add_data_options(evaluate)

    theorem = commands.add_parser("theorem", help="compare the updates of EP with the gradients of BPTT step by step")
    theorem.set_defaults(run=theorem_command.run)
    theorem_command.add_options(theorem)
    _add_data_options(theorem)

    reproduce = commands.add_parser("reproduce", help="run rows of the papers' tables again, several seeds each")
    reproduce.set_defaults(run=reproduce_command.run)
    reproduce_command.add_options(reproduce)
    _add_data_options(reproduce)

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


def _add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=folder, metavar="DIR", help="folder of torchvision data sets (default: data)"
    )
    parser.add_argument("--download", action="store_true", help="fetch a missing data set into --data-dir")


# ---------------------------------------------------------------------------------------------------------------
# Commands


def _train(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.resume:
        config, epochs = settings_to_resume(args)
    else:
        config = new_settings(args)
        epochs = PRESETS[config["preset"]].epochs
    device = _device(config["device"])  # before data is read
    dataset = _dataset(config, args).to(device)
    # The seed comes last before the weights are drawn, so that nothing above can change them.
    torch.manual_seed(seed_number("--seed", config["seed"]))
    trainer, preset = _trainer(config, dataset)
    out = args.out or _new_directory(config)
    try:
        history = trainer.fit(
            dataset.train_batches(preset.batch_size, config["seed"], preset.augmented),
            args.epochs or epochs,
            test=dataset.test_batches(TEST_BATCH),
            out=out,
            resume=args.resume,
            config=config,
            progress=has_bar(),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(out)) from None
    print(f"test error {history[-1]['test_error']:.2f} % after {len(history)} epochs, run directory {out}")


def _dataset(config: Mapping[str, Any], args: argparse.Namespace) -> Dataset:
    return load(config["data"], args.data_dir or config["data_dir"], download=args.download)


def _device(name: str) -> torch.device:
    """The --device of this name; ValueError if torch does not see it."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA GPU")
    one_of("--device", name, ["cpu", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
    return torch.device(name)


def _trainer(config: Mapping[str, Any], dataset: Dataset) -> tuple[Trainer, Preset]:
    preset = preset_of(config)
    shape = tuple(dataset.train_x.shape[1:])
    try:
        net = preset.network(shape, dataset.classes)
    except ValueError as error:
        raise ValueError(
            f"--preset {config['preset']} does not fit {config['data']}, whose images are {shape}: {error}"
        ) from error
    net.to(dataset.train_x.device)  # drawn on the CPU: the same weights everywhere
    optimizer = preset.optimizer(net)
    return Trainer(preset.rule(net, config["backend"]), optimizer, preset.scheduler(optimizer)), preset


def _new_directory(config: Mapping[str, Any]) -> Path:
    """A directory under runs/ that did not exist before; made at once, so that no other process takes it."""
    name = f"{config['preset']}{'-bptt' if config['bptt'] else ''}-{config['data']}-{config['seed']}"
    for number in count(1):
        out = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            continue
        return out
    raise AssertionError("unreachable")


def _how_to_resume(out: Path) -> str:
    try:
        finished = len(read_checkpoint(out)["history"])
    except FileNotFoundError:
        return "interrupted before the run began"
    except (ValueError, OSError) as error:
        return f"interrupted; {error}"
    return f"interrupted; {finished} finished epochs are kept, go on by `ceprop train --resume --out {out}`"


def _eval(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.out)
    config = settings_of(checkpoint, args.out)
    device = _device(args.device or "cpu")
    dataset = _dataset(config, args).to(device)
    trainer, _ = _trainer(config, dataset)
    refuse_another_network(trainer.rule.net, checkpoint["network"])
    trainer.rule.net.load_state_dict(checkpoint["network"])
    result = trainer.evaluate(dataset.test_batches(TEST_BATCH))
    print(
        f"test error {result['error']:.2f} %, loss {result['loss']:.4g} on {config['data']} after "
        f"{len(checkpoint['history'])} epochs of {config['preset']}{' by BPTT' if config['bptt'] else ''}"
    )


def _bench(args: argparse.Namespace) -> None:
    most = torch.get_num_threads()
    patterns, threads, rounds = (QUICK, [most], 3) if args.quick else (args.cases, sorted({1, most}), 5)
    if _device(args.device).type == "cuda" and args.threads:
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
