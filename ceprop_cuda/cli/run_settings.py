"""The settings of a run of ``ceprop train``: from options, and from a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import real_number, whole_number
from ..presets import PRESETS, Preset
from ..run_directory import read_checkpoint


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


# Options of a run, and what their values are in its config.
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "preset": _is_text,
    "data": _is_text,
    "seed": _is_whole,
    "backend": _is_text,
    "batch": _is_whole,
    "lr": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "steps": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value)),
    "angle": _is_number_or_none,
    "beta": _is_number,
    "nudging": _is_text,
    "schedule": _is_text,
    "tolerance": _is_number_or_none,
    "gate": _is_text,
    "device": _is_text,
}
ALL_SETTINGS = {**SETTINGS, "bptt": lambda value: isinstance(value, bool), "data_dir": _is_text}


def new_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a new run: everything that its result depends on, but the number of epochs."""
    name = args.preset or "digits"
    preset = PRESETS[name]
    if args.angle is not None:
        real_number("--angle", args.angle, lambda value: 0 <= value <= 180, "a number of degrees in [0, 180]")
        if preset.feedback == "tied":
            raise ValueError(f"--angle needs a preset with free feedback, {name} has tied feedback")
    is_bptt = args.rule == "bptt"
    for option in ("beta", "nudging", "tolerance", "gate"):
        given = getattr(args, option)
        if is_bptt and given is not None:
            raise ValueError(f"--{option} {given} is not for --rule bptt, the exact gradient through --steps T K")
    data_dir = args.data_dir or Path("data")
    return {
        "preset": name,
        "bptt": is_bptt,
        "data": args.data or preset.data,
        "data_dir": str(data_dir.absolute()),
        "seed": args.seed or 0,
        "backend": args.backend or "auto",
        "batch": args.batch or preset.batch_size,
        "lr": args.lr or list(preset.lr),
        "steps": args.steps or [preset.free_steps, preset.nudged_steps],
        "angle": preset.feedback_angle if args.angle is None else args.angle,
        "beta": preset.beta if args.beta is None else args.beta,
        "nudging": args.nudging or preset.nudging,
        "schedule": args.schedule or preset.schedule,
        "tolerance": None if is_bptt else preset.tolerance if args.tolerance is None else args.tolerance,
        "gate": "none" if is_bptt else args.gate or preset.gate or "none",
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
    if not _is_text(config.get("preset")) or config["preset"] not in PRESETS:
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
    free_steps, nudged_steps = config["steps"]
    whole_number("free_steps", free_steps, 0)  # which the network would be said not to fit the data for
    return replace(
        preset,
        batch_size=config["batch"],
        lr=tuple(config["lr"]),
        free_steps=free_steps,
        nudged_steps=nudged_steps,
        feedback_angle=config["angle"],
        beta=config["beta"],
        nudging=config["nudging"],
        schedule=config["schedule"],
        tolerance=config["tolerance"],
        gate=None if config["gate"] == "none" else config["gate"],
        bptt=config["bptt"],
    )
