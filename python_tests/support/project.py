"""Where the project and its parts lie."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
EMULATED_PROGRAMS = SUPPORT / "cuda_kernels"
GOLDEN = SUPPORT / "golden"
