"""Properties of CUDA devices, and networks for each place that weights and states can have."""

from __future__ import annotations

KIB = 1024
DEVICES: dict[str, dict[str, int]] = {
    "A100": {"compute_capability": 80, "multiprocessors": 108, "shared_bytes": 163 * KIB, "cluster_blocks": 0},
    "H100": {"compute_capability": 90, "multiprocessors": 132, "shared_bytes": 227 * KIB, "cluster_blocks": 16},
    "RTX 4090": {"compute_capability": 89, "multiprocessors": 128, "shared_bytes": 99 * KIB, "cluster_blocks": 0},
    "T4": {"compute_capability": 75, "multiprocessors": 40, "shared_bytes": 64 * KIB, "cluster_blocks": 0},
    "RTX 5090": {"compute_capability": 120, "multiprocessors": 170, "shared_bytes": 99 * KIB, "cluster_blocks": 8},
}
# Networks and batches whose weights and states lie in the memory of one cluster of blocks, in that of the whole grid
# (in more than one pass over the samples), and outside. Where they lie on an H100; smaller GPUs have less room.
PLACES: dict[str, tuple[tuple[int, ...], int]] = {
    "cluster": ((40, 33, 20, 10), 7),
    "grid": ((40, 512, 512, 10), 70),
    "streamed": ((40, 2200, 2200, 10), 8),
}
