"""What commands share: where to compute, and where data sets lie."""

from __future__ import annotations

import argparse

import torch

from ..arguments.checks import one_of
from ..arguments.options import folder


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=folder, metavar="DIR", help="folder of torchvision data sets (default: data)"
    )
    parser.add_argument("--download", action="store_true", help="fetch a missing data set into --data-dir")


def device_of(name: str) -> torch.device:
    """The --device of this name; ValueError if torch does not see it."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA GPU")
    one_of("--device", name, ["cpu", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
    return torch.device(name)
