"""The options of ``ceprop train`` that change what a preset says, each said once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..arguments.choices import Gate, Nudging, Schedule, words
from ..arguments.options import positive
from ..presets import Preset


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value)) and count in (None, len(value))


class PresetOption(NamedTuple):
    """``--name``, and what a run's config holds under this name."""

    name: str
    fields: tuple[str, ...]  # of the preset, whose values it sets
    fits: Callable[[Any], bool]  # whether a config may hold this value
    help: str
    parsing: dict[str, Any]  # more for the parser
    of_nudge: bool = False  # which BPTT has none of
    word_for_none: str | None = None

    def of_preset(self, preset: Preset) -> Any:
        """The value in a config, if the option is not given."""
        values = [getattr(preset, field) for field in self.fields]
        value = values if len(values) > 1 else values[0]
        if value is None:
            return self.word_for_none
        return list(value) if isinstance(value, tuple) else value

    def changes(self, value: Any) -> dict[str, Any]:
        """The fields of a preset, for a value in a config."""
        if len(self.fields) > 1:
            return dict(zip(self.fields, value, strict=True))
        if value == self.word_for_none:
            value = None
        return {self.fields[0]: tuple(value) if isinstance(value, list) else value}


OPTIONS = (
    PresetOption("batch", ("batch_size",), is_whole, "samples in a batch", {"type": positive, "metavar": "N"}),
    PresetOption(
        "lr",
        ("lr",),
        _list_of(is_number),
        "learning rate per connection, input side first",
        {"type": float, "nargs": "+", "metavar": "X"},
    ),
    PresetOption(
        "steps",
        ("free_steps", "nudged_steps"),
        _list_of(is_whole, 2),
        "free and nudged steps",
        {"type": int, "nargs": 2, "metavar": ("T", "K")},
    ),
    PresetOption(
        "angle",
        ("feedback_angle",),
        _or_none(is_number),
        "between free feedback and forward weights at first",
        {"type": float, "metavar": "DEG"},
    ),
    PresetOption("beta", ("beta",), is_number, "strength of the nudge", {"type": float, "metavar": "X"}, of_nudge=True),
    PresetOption("nudging", ("nudging",), is_text, "signs of beta", {"choices": words(Nudging)}, of_nudge=True),
    PresetOption(
        "schedule",
        ("schedule",),
        is_text,
        "order of moves; asynchronous needs half the steps",
        {"choices": words(Schedule)},
    ),
    PresetOption(
        "tolerance",
        ("tolerance",),
        _or_none(is_number),
        "end a phase once no unit moves more than this",
        {"type": float, "metavar": "X"},
        of_nudge=True,
    ),
    PresetOption(
        "gate",
        ("gate",),
        is_text,
        "factor on what units of free feedback have moved by",
        {"choices": ("none", *words(Gate))},
        of_nudge=True,
        word_for_none="none",
    ),
)


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    for option in OPTIONS:
        parser.add_argument(f"--{option.name}", help=f"{option.help} (default: the preset's)", **option.parsing)


def changes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset that a run's config says."""
    return {field: value for option in OPTIONS for field, value in option.changes(config[option.name]).items()}
