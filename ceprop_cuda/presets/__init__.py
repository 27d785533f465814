"""Networks and how to train them, by name."""

from .preset import Convolutions, CosineThenConstant, Preset
from .published import CONVOLUTIONAL, DENSE, PRESETS

__all__ = ["CONVOLUTIONAL", "DENSE", "PRESETS", "Convolutions", "CosineThenConstant", "Preset"]
