"""Properties of CUDA devices, and networks for each kernel of teams."""

from __future__ import annotations

from typing import NamedTuple

KIB = 1024
# What launch_plan asks. How many clusters run at once is assumed.
NO_CLUSTERS = {"cluster_blocks": 0, "clusters": 0}
DEVICES: dict[str, dict[str, int]] = {
    "A100": {"multiprocessors": 108, "shared_bytes": 163 * KIB, **NO_CLUSTERS},
    "H100": {"multiprocessors": 132, "shared_bytes": 227 * KIB, "cluster_blocks": 16, "clusters": 7},
    "RTX 4090": {"multiprocessors": 128, "shared_bytes": 99 * KIB, **NO_CLUSTERS},
    "T4": {"multiprocessors": 40, "shared_bytes": 64 * KIB, **NO_CLUSTERS},
    "RTX 5090": {"multiprocessors": 170, "shared_bytes": 99 * KIB, "cluster_blocks": 8, "clusters": 20},
}


class OfKernel(NamedTuple):
    """A network and a batch for which the planner takes a kernel on an H100."""

    team: str  # while weights rest
    samples: int  # of a group; groups of 2 are those of float64, all others of float32
    moving_team: str  # of C-EP, in which weights move
    widths: tuple[int, ...]
    batch: int


# Every kernel of teams.
KERNELS = [
    OfKernel("block", 1, "block", (11, 7, 3), 20),
    OfKernel("block", 1, "grid", (40, 20, 9, 10), 70),
    OfKernel("block", 2, "block", (40, 16, 10), 3),
    OfKernel("block", 2, "grid", (11, 9, 16, 7), 33),
    OfKernel("block", 3, "grid", (40, 64, 10), 200),
    OfKernel("block", 4, "grid", (64, 100, 7), 400),
    OfKernel("cluster", 1, "cluster", (40, 33, 200, 64, 7), 5),
    OfKernel("cluster", 1, "grid", (40, 16, 512, 400, 7), 5),
    OfKernel("cluster", 2, "cluster", (40, 100, 9, 10), 7),
    OfKernel("cluster", 2, "grid", (64, 512, 20, 3), 20),
    OfKernel("cluster", 3, "cluster", (64, 256, 64, 7), 20),
    OfKernel("cluster", 3, "grid", (64, 100, 20, 7), 70),
    OfKernel("cluster", 4, "grid", (40, 100, 64, 256, 3), 132),
    OfKernel("grid", 2, "grid", (11, 400, 400, 200, 10), 16),
    OfKernel("grid", 4, "grid", (40, 512, 512, 256, 10), 70),
]
