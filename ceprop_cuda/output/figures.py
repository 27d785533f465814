"""Drawing with matplotlib, which is loaded only where something is drawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .files import write_atomically
from .messages import warn_once


def import_matplotlib() -> None:
    """Whatever MPLBACKEND says: figures made without pyplot need no backend, and a notebook's may be missing here.

    Half a second, which only those who draw should pay. Figures are made by the object interface, not by pyplot, which
    keeps them and a backend in global state that belongs to the caller.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # who uses pyplot later finds their backend, or hears what is wrong with it
            matplotlib.rcParams["backend"] = backend


def save_figure(path: Path, draw: Callable[[], bytes]) -> None:
    """Put the image that ``draw`` returns at ``path``. If it cannot be drawn, that is a warning, told once: there is
    more to a run than its picture. OSError if it cannot be written."""
    try:
        image = draw()
    except Exception as error:
        warn_once(f"{path} is not drawn: {type(error).__name__}: {error}")
        return
    write_atomically(path, image)
