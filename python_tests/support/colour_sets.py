"""CIFAR and SVHN of random images, written in their published file formats with the names that torchvision looks for.

torchvision compares every file with the checksum of the published one before it reads it, so it takes these files only
where :func:`write_cifar` and :func:`write_svhn` have told it, by ``monkeypatch``, their checksums instead.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 images (N, 3, 32, 32), labels (N,)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def random_images(count: int, classes: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % classes


def write_cifar(data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, per_file: int = 8) -> dict[str, Arrays]:
    """``name`` is "cifar10" or "cifar100". Pickled dicts: "data" (N, 3072) uint8, an image's red values row by row,
    then the green and the blue ones; "labels", of CIFAR-100 "fine_labels" and "coarse_labels". Returns "train" and
    "test"."""
    kind, classes = (CIFAR10, 10) if name == "cifar10" else (CIFAR100, 100)
    folder = data_dir / kind.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: dict[str, Any]) -> str:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return md5(folder / file)

    written: dict[str, list[Arrays]] = {"train": [], "test": []}
    for part, attribute in (("train", "train_list"), ("test", "test_list")):
        checksums = []
        for number, (file, _) in enumerate(getattr(kind, attribute)):
            images, labels = random_images(per_file, classes, seed=10 * (part == "test") + number)
            content: dict[str, Any] = {
                "data": images.reshape(per_file, -1),
                "batch_label": file,
                "filenames": ["a.png"],
            }
            if kind is CIFAR10:
                content["labels"] = labels.tolist()
            else:
                content |= {"fine_labels": labels.tolist(), "coarse_labels": (labels % 20).tolist()}
            checksums.append([file, write(file, content)])
            written[part].append((images, labels))
        monkeypatch.setattr(kind, attribute, checksums)
    meta = {kind.meta["key"]: [f"class {number}" for number in range(classes)]}
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], meta)})
    return {
        part: (np.concatenate([images for images, _ in files]), np.concatenate([labels for _, labels in files]))
        for part, files in written.items()
    }


def write_svhn(data_dir: Path, monkeypatch: pytest.MonkeyPatch, count: int = 12) -> dict[str, Arrays]:
    """MATLAB files: "X" (32, 32, 3, N) uint8, "y" (N, 1) uint8 with 10 for the digit 0. Returns "train" and "test" with
    0 for it. Needs scipy."""
    from scipy.io import savemat

    data_dir.mkdir(parents=True, exist_ok=True)
    written, published = {}, dict(SVHN.split_list)
    for seed, part in enumerate(("train", "test")):
        url, file, _ = published[part]
        images, labels = random_images(count, 10, seed)
        of_file = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(data_dir / file, {"X": images.transpose(2, 3, 1, 0), "y": of_file}, do_compression=True)
        published[part] = [url, file, md5(data_dir / file)]
        written[part] = (images, labels)
    monkeypatch.setattr(SVHN, "split_list", published)
    return written
