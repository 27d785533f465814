"""The settings of a run of ``ceprop train``: from options, and from a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..arguments.checks import real_number, whole_number
from ..presets import PRESETS, Preset
from ..run_directory import read_checkpoint
from .preset_options import OPTIONS, changes_of, is_text, is_whole

# Options of a run, and what their values are in its config.
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "preset": is_text,
    "data": is_text,
    "seed": is_whole,
    "backend": is_text,
    **{option.name: option.fits for option in OPTIONS},
    "device": is_text,
}
ALL_SETTINGS = {**SETTINGS, "bptt": lambda value: isinstance(value, bool), "data_dir": is_text}


def new_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a new run: everything that its result depends on, but the number of epochs."""
    name = args.preset or "digits"
    preset = PRESETS[name]
    if args.angle is not None:
        real_number("--angle", args.angle, lambda value: 0 <= value <= 180, "a number of degrees in [0, 180]")
        if preset.feedback == "tied":
            raise ValueError(f"--angle needs a preset with free feedback, {name} has tied feedback")
    is_bptt = args.rule == "bptt"
    if is_bptt:
        preset = replace(preset, tolerance=None, gate=None)
    of_preset = {}
    for option in OPTIONS:
        given = getattr(args, option.name)
        if is_bptt and option.of_nudge and given is not None:
            raise ValueError(f"--{option.name} {given} is not for --rule bptt, the exact gradient through --steps T K")
        of_preset[option.name] = option.of_preset(preset) if given is None else given
    data_dir = args.data_dir or Path("data")
    return {
        "preset": name,
        "bptt": is_bptt,
        "data": args.data or preset.data,
        "data_dir": str(data_dir.absolute()),
        "seed": args.seed or 0,
        "backend": args.backend or "auto",
        **of_preset,
        "device": args.device or "cpu",
    }


def settings_to_resume(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The settings and planned epochs of the run in ``args.out``; ValueError if options contradict them."""
    if args.out is None:
        raise ValueError("--resume needs --out DIR, the run directory to go on with")
    checkpoint = read_checkpoint(args.out)
    config = settings_of(checkpoint, args.out)
    for name in SETTINGS:
        given = getattr(args, name)
        if given is not None and given != config[name]:
            raise ValueError(f"--{name} {given} contradicts the run in {args.out}, which has {config[name]}")
    if args.rule == "bptt" and not config["bptt"]:
        raise ValueError(f"--rule bptt contradicts the run in {args.out}, which learns by its preset's rule")
    return config, checkpoint["epochs"]


def settings_of(checkpoint: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The settings of the run with this checkpoint; ValueError if it was not made by ``ceprop train`` as it is."""
    config: dict[str, Any] = checkpoint["config"]
    if not is_text(config.get("preset")) or config["preset"] not in PRESETS:
        raise ValueError(f"the run in {out} was not made by `ceprop train`: its config.json names no known preset")
    missing = [name for name in ALL_SETTINGS if name not in config]
    if missing:
        raise ValueError(f"the run in {out} was made by another version: its config.json has no {', '.join(missing)}")
    for name, fits in ALL_SETTINGS.items():
        if not fits(config[name]):
            raise ValueError(f"the run in {out} was not made by `ceprop train`: its {name} is {config[name]!r}")
    return config


def preset_of(config: Mapping[str, Any]) -> Preset:
    """The preset of a run of ``ceprop train`` with the run's own settings; ``config`` is that of its checkpoint."""
    preset = PRESETS[config["preset"]]
    if len(config["lr"]) != len(preset.lr):
        raise ValueError(f"--lr takes {len(preset.lr)} rates for {config['preset']}, got {len(config['lr'])}")
    changes = changes_of(config)
    whole_number("free_steps", changes["free_steps"], 0)  # which the network would be said not to fit the data for
    return replace(preset, bptt=config["bptt"], **changes)
