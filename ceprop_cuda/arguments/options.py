"""What the parsers of the command line share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .checks import folder_path


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, as its subcommands do: --data is not short for --data-dir."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})


def folder(text: str) -> Path:
    """The type of an option."""
    try:
        return folder_path("DIR", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """The type of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
