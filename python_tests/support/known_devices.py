"""Properties of CUDA devices, and networks for each kernel of teams."""

from __future__ import annotations

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
# Every kernel of teams: the kind of team, how many samples a group has, and a network and a batch for which the planner
# takes it on an H100. Groups of 2 samples are those of float64, all others of float32. Beside each there is one for
# C-EP, in which the grid moves the weights.
KERNELS: list[tuple[str, int, tuple[int, ...], int]] = [
    ("block", 1, (40, 33, 20, 10), 100),
    ("block", 2, (11, 9, 7, 3), 5),
    ("block", 3, (40, 33, 20, 10), 256),
    ("block", 4, (40, 33, 20, 10), 400),
    ("cluster", 1, (40, 200, 10), 5),
    ("cluster", 2, (40, 200, 10), 5),
    ("cluster", 3, (40, 200, 20, 10), 20),
    ("cluster", 4, (40, 200, 200, 10), 132),
    ("grid", 2, (40, 512, 512, 10), 7),
    ("grid", 4, (40, 512, 512, 10), 70),
]
