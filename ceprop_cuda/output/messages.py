"""What the package says, bars and log lines, none of which may end what it does."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import cache

from tqdm.auto import tqdm

log = logging.getLogger("ceprop_cuda")


def has_stderr() -> bool:
    """Whether anything can be written there: it may be closed, or None as in a process without a terminal."""
    return sys.stderr is not None and not sys.stderr.closed


def has_bar() -> bool:
    """Whether a progress bar can be drawn: on a terminal or in a notebook, not into a file."""
    on_terminal = has_stderr() and sys.stderr.isatty()
    return on_terminal or any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def provide_stderr() -> None:
    """Give a process without stderr one that forgets, before the first file that it opens takes stderr's place: what
    libraries write to descriptor 2 would go there."""
    if has_stderr():
        return
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 for as long as the process lives
    try:
        os.fstat(2)
    except OSError:
        os.dup2(sys.stderr.fileno(), 2)


def spare_stderr() -> None:
    """Let the interpreter end as it would: what stderr has not taken, of a full disk say, it would report by a status
    of its own."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def say(message: str, level: int = logging.INFO) -> None:
    """Log it, whatever became of the stream that the log goes to."""
    with suppress(ValueError):  # of a handler whose stream is closed
        log.log(level, message)


def warn(message: str) -> None:
    say(message, logging.WARNING)


@cache
def warn_once(message: str) -> None:
    """However often it is called with this message."""
    warn(message)
