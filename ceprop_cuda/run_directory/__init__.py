"""A training run as files: its checkpoint, its metrics, its settings and its figure."""

from .checkpoint import GeneratorState, refuse_another_network
from .directory import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    Metrics,
    RunDirectory,
    json_values,
    read_checkpoint,
    read_json_object,
    read_metrics,
)
from .figure import curves

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "METRICS",
    "GeneratorState",
    "Metrics",
    "RunDirectory",
    "curves",
    "json_values",
    "read_checkpoint",
    "read_json_object",
    "read_metrics",
    "refuse_another_network",
]
