"""What the value of an argument may be, and an error's words for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")

LONGEST = 60  # characters of a value in an error


def shown(value: object) -> str:
    """``value`` as an error shows it: short, whatever it is."""
    if shape := getattr(value, "shape", None):
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # of an int with thousands of digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def one_of(name: str, value: object, choices: Sequence[T]) -> T:
    """The one of ``choices`` that ``value`` is; refused if it is none of them."""
    if value is None or isinstance(value, str | int | np.bool_):  # an array would compare number by number
        for choice in choices:
            if value == choice:
                return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def whole_number(name: str, value: object, least: int) -> int:
    """``value`` as an int; refused if it is none, or not between ``least`` and 2^31 - 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name} must be an int >= {least}, got {shown(value)}")
    if int(value) >= 2**31:
        raise ValueError(f"{name} must be an int < 2**31, got {shown(value)}")
    return int(value)


def real_number(name: str, value: object, allowed: Callable[[float], bool], wanted: str) -> float:
    """``value`` as a float; refused if it is no finite number for which ``allowed`` holds, ``wanted`` in words."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of an int that no float can hold
        number = math.inf
    if not math.isfinite(number) or not allowed(number):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return number


def tolerance_or_none(tolerance: object) -> float | None:
    """``tolerance`` as a float or None; ValueError if it is neither, negative or not finite."""
    if tolerance is None:
        return None
    return real_number("tolerance", tolerance, lambda value: value >= 0, "None or a finite number >= 0")


def seed_number(name: str, seed: object) -> int:
    """``seed`` as an int that torch's generators take; refused, by this ``name``, if it is none."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"{name} must be an int in [-2**63, 2**64), got {shown(seed)}")
    return int(seed)


def folder_path(name: str, path: str | os.PathLike[str]) -> Path:
    """``path`` with ~ expanded; refused, by this ``name``, if it is none."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be the path of a folder, got {shown(path)}")
    if not str(path).strip():
        raise ValueError(f"{name} must be the path of a folder, got {str(path)!r}: the current one is '.'")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{name} begins with the home of a user who has none here: {path}") from None
