"""Data sets of random images in MNIST's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def write_idx(path: Path, values: np.ndarray) -> None:
    """MNIST's format: 0, 0, type (8: unsigned byte), rank; the sizes, 4 bytes each, big end first; the values."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def write_mnist(data_dir: Path, folder: str = "MNIST", train: int = 30, test: int = 10) -> dict[str, np.ndarray]:
    """A data set of random images in torchvision's layout; returns its arrays."""
    raw = data_dir / folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (size, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(size) % 10
    for name, values in arrays.items():
        write_idx(raw / name, values)
    return arrays
