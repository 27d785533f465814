"""Data sets as whole tensors, and batches of them.

Decoding and transforming samples one by one in Python takes longer than a fused training step on them, so nothing
here works on single samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import one_of, shown, whole_number
from .files import folder_path
from .images import Normalisation, random_crop

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Dataset(NamedTuple):
    """Images and class indices of a classification task.

    Grey images are floats from 0 (background) to 1. Colour images are kept as bytes, a quarter of the memory, and
    become floats batch by batch.
    """

    train_x: Tensor  # (N, C, H, W)
    train_y: Tensor  # (N,) int64
    test_x: Tensor  # (M, C, H, W)
    test_y: Tensor  # (M,) int64
    classes: int
    normalise: Normalisation | None = None  # bytes to what the network sees
    mirrors: bool = False  # whether an image's mirror image shows the same class

    def to(self, device: torch.device | str) -> Dataset:
        """The same on ``device``, where the batches then are, too."""
        tensors = {name: getattr(self, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
        return self._replace(**tensors)

    def train_batches(self, batch_size: int, seed: int = 0, augmented: bool = False) -> Batches:
        """The training set in a new order every epoch, x ``(B, C, H, W)``, y ``(B,)``.

        Args:
            batch_size: samples in a batch; the last one holds what is left.
            seed: of the orders, and of what ``augmented`` draws.
            augmented: each image moved by up to 4 pixels each way and, if the data set allows, mirrored or not, drawn
                anew every epoch.
        """
        augment = partial(random_crop, mirror=self.mirrors) if augmented else None
        return Batches(self.train_x, self.train_y, batch_size, True, seed, augment=augment, normalise=self.normalise)

    def test_batches(self, batch_size: int) -> Batches:
        """The test set in order, x ``(B, C, H, W)``, y ``(B,)``."""
        return Batches(self.test_x, self.test_y, batch_size, normalise=self.normalise)


class Batches:
    """The batches ``(x, y)`` of a data set held as tensors; iterate anew for each epoch.

    Args:
        x, y: ``(N, ...)``, on the same device.
        batch_size: samples in a batch; the last one holds what is left.
        shuffle: draw a new order at the start of each epoch.
        seed: of the orders and of ``augment``; the batches own their generator, so other random numbers do not change
            either.
        augment: takes some batches of ``x`` at once and a generator, which is seeded anew for each epoch; returns what
            to use in their place.
        normalise: comes after that, without a generator.

    Raises ValueError if there are no samples, ``x`` and ``y`` differ in length, or another argument is wrong.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        *,
        augment: Augment | None = None,
        normalise: Normalisation | None = None,
    ) -> None:
        batch_size = whole_number("batch_size", batch_size, 1)
        shuffle = one_of("shuffle", shuffle, (True, False))
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x and y must hold the same number of samples, at least 1, got {len(x)} and {len(y)}")
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.normalise = normalise
        self._generator = torch.Generator("cpu").manual_seed(seed_number("seed", seed))

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self._generator, device="cpu") if self.shuffle else None
        draws = torch.Generator("cpu")
        if self.augment is not None:
            # One number of the batches' generator decides all draws of an epoch, so that its state at any time within
            # an epoch is that of the next.
            draws.manual_seed(int(torch.randint(2**63 - 1, (), generator=self._generator, device="cpu")))
        for x, y in self._groups(order):
            if self.augment is not None:
                x = self.augment(x, draws)
            if self.normalise is not None:
                x = self.normalise(x)
            yield from zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)

    def _groups(self, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Some batches at a time: preparing them together takes little more time than preparing one."""
        size = 16 * self.batch_size
        if order is None:
            return zip(self.x.split(size), self.y.split(size), strict=True)
        return ((self.x[indices], self.y[indices]) for indices in order.to(self.x.device).split(size))

    def state_dict(self) -> dict[str, Tensor]:
        """What decides the orders and augmentations of the epochs that have not begun yet."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the orders that would have followed when ``state`` was taken."""
        self._generator.set_state(state["generator"])


def seed_number(name: str, seed: object) -> int:
    """``seed`` as an int that torch's generators take; refused, by this ``name``, if it is none."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"{name} must be an int in [-2**63, 2**64), got {shown(seed)}")
    return int(seed)


def load(
    name: str, data_dir: str | Path = "data", download: bool = False, dtype: torch.dtype = torch.float32
) -> Dataset:
    """The data set ``name``, on the CPU.

    Args:
        name: "digits" (1797 images of 8x8 that come with this package, see digits/LICENSE.txt); read through
            torchvision: "mnist", "fashion-mnist" or "kmnist" (70000 grey images of 28x28), "cifar10", "cifar100"
            (60000 colour images of 32x32) or "svhn" (99289 of them, without its extra part; needs scipy).
        data_dir: folder that holds torchvision's, e.g. ``data_dir/MNIST/raw``; digits needs none.
        download: fetch missing files into ``data_dir``.
        dtype: floating dtype of the images, for colour images that of the batches.

    Raises:
        FileNotFoundError: files are missing and ``download`` is False.
        ConnectionError: a download failed.
        ValueError: the name is unknown, or a file is damaged.
        ModuleNotFoundError: a package that reads the files is not installed.
    """
    name = one_of("the name of a data set", name, DATASETS)
    if name == "digits":
        return _digits(dtype)
    return _from_torchvision(name, folder_path("data_dir", data_dir), download, dtype)


def _digits(dtype: torch.dtype) -> Dataset:
    with np.load(Path(__file__).parent / "digits" / "digits.npz") as file:
        x = torch.from_numpy(file["images"]).to(dtype)[:, None] / 16
        y = torch.from_numpy(file["labels"]).long()
        is_test = torch.zeros(len(y), dtype=torch.bool, device="cpu")
        is_test[torch.from_numpy(file["test"]).long()] = True
    return Dataset(x[~is_test], y[~is_test], x[is_test], y[is_test], 10)


# ---------------------------------------------------------------------------------------------------------------
# Sets of torchvision


class _Source(NamedTuple):
    kind: str  # torchvision's class
    classes: int = 10
    normalise: Normalisation | None = None  # None: grey images
    mirrors: bool = False


def _thrice(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    """Most values within [-1, 1]: three standard deviations become 1, as 2006.03824's code has it for CIFAR-10."""
    return Normalisation(mean, tuple(3 * value for value in std))


# CIFAR-10's means and deviations are 2006.03824's; the others' are the pixels' own, as usually given.
_TORCHVISION = {
    "mnist": _Source("MNIST"),
    "fashion-mnist": _Source("FashionMNIST"),
    "kmnist": _Source("KMNIST"),
    "cifar10": _Source("CIFAR10", 10, _thrice((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), mirrors=True),
    "cifar100": _Source("CIFAR100", 100, _thrice((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), mirrors=True),
    "svhn": _Source("SVHN", 10, _thrice((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
}

DATASETS = ("digits", *_TORCHVISION)


def _from_torchvision(name: str, data_dir: Path, download: bool, dtype: torch.dtype) -> Dataset:
    # Importing torchvision takes a second, and the bundled digits do without it.
    from torchvision import datasets

    source = _TORCHVISION[name]
    if name == "svhn" and find_spec("scipy") is None:
        raise ModuleNotFoundError("torchvision reads svhn by scipy, which is not installed: pip install scipy")
    kind = getattr(datasets, source.kind)
    folder, files = _files(kind, data_dir)
    missing = [file for file in files if not (folder / file).exists()]
    if missing and not download:
        raise FileNotFoundError(
            f"{name} is not in {folder}: there is no {missing[0]}. Name another folder by data_dir "
            "(--data-dir), or allow the download by download=True (--download)"
        )
    if missing:
        try:
            _parts(kind, data_dir, download=True)
        except (RuntimeError, OSError) as error:
            raise ConnectionError(f"downloading {name} into {folder} failed: {error}") from error
    try:
        (train_x, train_y), (test_x, test_y) = _parts(kind, data_dir)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"{name} in {folder} cannot be read: delete the damaged file ({error!r})") from error
    if len(train_x) != len(train_y) or len(test_x) != len(test_y):
        raise ValueError(f"{name} in {folder} cannot be used: there are not as many images as labels")
    if source.normalise is None:
        train_x, test_x = (x.to(dtype)[:, None] / 255 for x in (train_x, test_x))
        return Dataset(train_x, train_y, test_x, test_y, source.classes)
    normalise = source.normalise._replace(dtype=dtype)
    return Dataset(train_x, train_y, test_x, test_y, source.classes, normalise, source.mirrors)


def _files(kind: Any, data_dir: Path) -> tuple[Path, list[str]]:
    """The folder and the names of the files that torchvision's class reads."""
    if hasattr(kind, "resources"):  # MNIST and its like
        return data_dir / kind.__name__ / "raw", [file.removesuffix(".gz") for file, _ in kind.resources]
    if hasattr(kind, "base_folder"):  # CIFAR
        batches = [file for file, _ in kind.train_list + kind.test_list]
        return data_dir / kind.base_folder, [*batches, kind.meta["filename"]]
    return data_dir, [kind.split_list[part][1] for part in ("train", "test")]


def _parts(kind: Any, data_dir: Path, download: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Images of bytes, ``(N, H, W)`` or ``(N, C, H, W)``, and labels ``(N,)`` of the training and the test set."""
    if hasattr(kind, "resources"):
        grey = [kind(data_dir, train=train, download=download) for train in (True, False)]
        return [(part.data, part.targets) for part in grey]
    if hasattr(kind, "base_folder"):
        cifar = [kind(data_dir, train=train, download=download) for train in (True, False)]
        return [
            (torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.as_tensor(np.array(part.targets))) for part in cifar
        ]
    svhn = [kind(data_dir, split=split, download=download) for split in ("train", "test")]
    return [(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)) for part in svhn]
