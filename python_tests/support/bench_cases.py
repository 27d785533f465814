"""Small cases for `ceprop bench`."""

from __future__ import annotations

from dataclasses import replace

from ceprop_cuda.bench.cases import Case
from ceprop_cuda.presets import PRESETS, Convolutions

SETTINGS = ("ep-1h", "ep-2h", "c-ep-1h", "c-ep-2h", "c-vf-1h", "c-vf-2h", "p-3h")


def small(name: str, batch: int = 5, **changes: object) -> Case:
    """A published setting with few units and steps."""
    preset = PRESETS[name]
    hidden = (12, 11, 10)[: len(preset.hidden)]
    preset = replace(preset, hidden=hidden, free_steps=4, nudged_steps=3, nudging="positive", gate=None)
    return Case(name, preset, batch, inputs=7, classes=3, **changes)


def small_convolutional(continual: bool) -> Case:
    convolutions = Convolutions(channels=(5, 6), kernels=3, paddings=(1, 0), pools="ma")
    preset = replace(PRESETS["p-conv"], convolutions=convolutions, continual=continual, free_steps=4, nudged_steps=3)
    return Case("small", preset, 4, inputs=(2, 8, 9), classes=3)
