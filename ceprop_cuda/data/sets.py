"""The data sets that can be read, by name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arguments.checks import folder_path, one_of
from .batches import Dataset
from .images import Normalisation


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
