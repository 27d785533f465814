"""Data sets as whole tensors, and batches of them.

Decoding and transforming samples one by one in Python takes longer than a fused training step on them, so nothing
here works on single samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .network import one_of, whole_number

DATASETS = ("digits", "mnist", "fashion-mnist", "kmnist")

_TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


class Dataset(NamedTuple):
    """Images and class indices of a classification task."""

    train_x: Tensor  # (N, 1, H, W), 0 (background) to 1
    train_y: Tensor  # (N,) int64
    test_x: Tensor  # (M, 1, H, W)
    test_y: Tensor  # (M,) int64
    classes: int


class Batches:
    """The batches ``(x, y)`` of a data set held as tensors; iterate anew for each epoch.

    Args:
        x, y: ``(N, ...)``, on the same device.
        batch_size: samples in a batch; the last one holds what is left.
        shuffle: draw a new order at the start of each epoch.
        seed: of the orders; the batches own their generator, so other random numbers do not change the orders.

    Raises ValueError if there are no samples or ``x`` and ``y`` differ in length.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, shuffle: bool = False, seed: int = 0) -> None:
        whole_number("batch_size", batch_size, 1)
        one_of("shuffle", shuffle, (True, False))
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x and y must hold the same number of samples, at least 1, got {len(x)} and {len(y)}")
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.shuffle = shuffle
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            yield from zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
            return
        order = torch.randperm(len(self.x), generator=self._generator)
        # Gathering some batches at once takes little more time than gathering one.
        for indices in order.to(self.x.device).split(16 * self.batch_size):
            yield from zip(self.x[indices].split(self.batch_size), self.y[indices].split(self.batch_size), strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """What decides the orders of the epochs that have not begun yet."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the orders that would have followed when ``state`` was taken."""
        self._generator.set_state(state["generator"])


def load(
    name: str, data_dir: str | Path = "data", download: bool = False, dtype: torch.dtype = torch.float32
) -> Dataset:
    """The data set ``name``, on the CPU.

    Args:
        name: "digits" (1797 images of 8x8 that come with this package, see digits/LICENSE.txt), or "mnist",
            "fashion-mnist" or "kmnist" (70000 images of 28x28, read through torchvision).
        data_dir: folder that holds torchvision's, e.g. ``data_dir/MNIST/raw``; digits needs none.
        download: fetch missing files into ``data_dir``.
        dtype: floating dtype of the images.

    Raises:
        FileNotFoundError: files are missing and ``download`` is False.
        ConnectionError: a download failed.
        ValueError: the name is unknown, or a file is damaged.
    """
    one_of("the name of a data set", name, DATASETS)
    if name == "digits":
        return _digits(dtype)
    return _from_torchvision(name, Path(data_dir), download, dtype)


def _digits(dtype: torch.dtype) -> Dataset:
    with np.load(Path(__file__).parent / "digits" / "digits.npz") as file:
        x = torch.from_numpy(file["images"]).to(dtype)[:, None] / 16
        y = torch.from_numpy(file["labels"]).long()
        is_test = torch.zeros(len(y), dtype=torch.bool)
        is_test[torch.from_numpy(file["test"]).long()] = True
    return Dataset(x[~is_test], y[~is_test], x[is_test], y[is_test], 10)


def _from_torchvision(name: str, data_dir: Path, download: bool, dtype: torch.dtype) -> Dataset:
    # Importing torchvision takes a second, and the bundled digits do without it.
    from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION_CLASSES[name])
    folder = data_dir / kind.__name__ / "raw"
    missing = [file for file, _ in kind.resources if not (folder / file.removesuffix(".gz")).exists()]
    if missing and not download:
        raise FileNotFoundError(
            f"{name} is not in {folder}: there is no {missing[0].removesuffix('.gz')}. Name another folder by data_dir "
            "(--data-dir), or allow the download by download=True (--download)"
        )
    if missing:
        try:
            kind(data_dir, download=True)
        except (RuntimeError, OSError) as error:
            raise ConnectionError(f"downloading {name} into {folder} failed: {error}") from error
    try:
        train, test = kind(data_dir, train=True), kind(data_dir, train=False)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"{name} in {folder} cannot be read: delete the damaged file ({error!r})") from error
    if len(train.data) != len(train.targets) or len(test.data) != len(test.targets):
        raise ValueError(f"{name} in {folder} cannot be used: there are not as many images as labels")
    train_x, test_x = (part.data.to(dtype)[:, None] / 255 for part in (train, test))
    return Dataset(train_x, train.targets, test_x, test.targets, len(kind.classes))
