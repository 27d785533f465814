"""What ``ceprop train`` and ``ceprop eval`` do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..arguments.checks import seed_number
from ..arguments.choices import Backend, words
from ..arguments.options import folder, positive
from ..data import DATASETS, Dataset, load
from ..output.messages import has_bar
from ..presets import PRESETS, Preset
from ..run_directory import read_checkpoint, refuse_another_network
from ..training import Trainer
from .preset_options import add_preset_options
from .run_settings import new_settings, preset_of, settings_of, settings_to_resume
from .shared import add_data_options, add_device_option, device_of

TEST_BATCH = 500  # samples; only changes how long a test takes


def add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "presets:\n" + "".join(f"  {name:<16}{preset.source}\n" for name, preset in PRESETS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--preset", choices=PRESETS, metavar="NAME", help="settings, see below (default: digits)")
    parser.add_argument(
        "--rule",
        choices=("bptt",),
        help="learn by the gradient of BPTT, as EP's yardstick (default: the preset's rule)",
    )
    parser.add_argument("--data", choices=DATASETS, help="data set (default: the preset's)")
    add_data_options(parser)
    parser.add_argument("--epochs", type=positive, metavar="N", help="epochs in all (default: the preset's)")
    add_preset_options(parser)
    parser.add_argument("--seed", type=int, metavar="S", help="of weights, signs of beta and orders (default: 0)")
    parser.add_argument("--backend", choices=words(Backend), help="what runs the network (default: auto)")
    add_device_option(parser)
    parser.add_argument("--out", type=folder, metavar="DIR", help="run directory (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, by its own settings")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's)")


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="out", type=folder, required=True, metavar="DIR", help="run directory")
    add_device_option(parser)
    add_data_options(parser)


def train(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.resume:
        config, epochs = settings_to_resume(args)
    else:
        config = new_settings(args)
        epochs = PRESETS[config["preset"]].epochs
    device = device_of(config["device"])  # before data is read
    dataset = _dataset(config, args).to(device)
    # The seed comes last before the weights are drawn, so that nothing above can change them.
    torch.manual_seed(seed_number("--seed", config["seed"]))
    trainer, preset = trainer_of(config, dataset)
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


def trainer_of(config: Mapping[str, Any], dataset: Dataset) -> tuple[Trainer, Preset]:
    preset = preset_of(config)
    shape = tuple(dataset.train_x.shape[1:])
    try:
        net = preset.network(shape, dataset.classes)
    except ValueError as error:
        raise ValueError(
            f"--preset {config['preset']} does not fit {config['data']}, whose images are {shape}: {error}"
        ) from error
    net.to(dataset.train_x.device)  # drawn on the CPU: the same weights everywhere
    rule, optimizer = preset.rule(net, config["backend"]), preset.optimizer(net)
    return Trainer(rule, optimizer, preset.scheduler(optimizer or rule.optimizer)), preset


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


def evaluate(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.out)
    config = settings_of(checkpoint, args.out)
    device = device_of(args.device or "cpu")
    dataset = _dataset(config, args).to(device)
    trainer, _ = trainer_of(config, dataset)
    refuse_another_network(trainer.rule.net, checkpoint["network"])
    trainer.rule.net.load_state_dict(checkpoint["network"])
    result = trainer.evaluate(dataset.test_batches(TEST_BATCH))
    print(
        f"test error {result['error']:.2f} %, loss {result['loss']:.4g} on {config['data']} after "
        f"{len(checkpoint['history'])} epochs of {config['preset']}{' by BPTT' if config['bptt'] else ''}"
    )
