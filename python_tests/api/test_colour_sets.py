"""CIFAR-10, CIFAR-100 and SVHN, read from small files in their published formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from colour_sets import write_cifar, write_svhn
from torchvision.datasets import CIFAR10

from ceprop_cuda.data import Dataset, load, sets

CIFAR = ("cifar10", "cifar100")


def assert_holds(loaded: Dataset, written: dict[str, Any]) -> None:
    for part, x, y in (("train", loaded.train_x, loaded.train_y), ("test", loaded.test_x, loaded.test_y)):
        images, labels = written[part]
        assert x.dtype == torch.uint8
        assert x.is_contiguous()
        assert torch.equal(x, torch.from_numpy(images))
        assert y.dtype == torch.int64
        assert torch.equal(y, torch.from_numpy(labels))


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_cifar(tmp_path, monkeypatch, name)
    assert len(written["train"][0]) == (40 if name == "cifar10" else 8)
    loaded = load(name, tmp_path)
    assert_holds(loaded, written)
    assert loaded.classes == (10 if name == "cifar10" else 100)
    assert loaded.mirrors


def test_svhn_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy", reason="torchvision reads SVHN by scipy, which is not installed")
    written = write_svhn(tmp_path, monkeypatch)
    loaded = load("svhn", tmp_path)
    assert_holds(loaded, written)
    assert loaded.classes == 10
    assert not loaded.mirrors


def test_batches_of_cifar_are_normalised_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = write_cifar(tmp_path, monkeypatch, "cifar10")["test"]
    mean, std = np.array([0.4914, 0.4822, 0.4465]), 3 * np.array([0.2023, 0.1994, 0.2010])
    expected = torch.from_numpy((images / 255 - mean[:, None, None]) / std[:, None, None])
    for dtype in (torch.float32, torch.float64):
        ((x, _),) = load("cifar10", tmp_path, dtype=dtype).test_batches(8)
        assert x.dtype == dtype
        torch.testing.assert_close(x, expected.to(dtype))


def test_all_colour_sets_lie_mostly_within_one() -> None:
    for name in (*CIFAR, "svhn"):
        normalise = sets._TORCHVISION[name].normalise
        assert normalise is not None
        low, high = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
        assert -1 < low.min() < low.max() < -0.5
        assert 0.5 < high.min() < high.max() < 1


def test_without_scipy_svhn_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "find_spec", lambda name: None if name == "scipy" else importlib.util.find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=r"svhn by scipy, which is not installed: pip install scipy"):
        load("svhn", tmp_path)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py: there is no batches\.meta.*download=True"):
        load("cifar10", tmp_path)
    monkeypatch.setattr(sets, "find_spec", lambda _: object())
    with pytest.raises(FileNotFoundError, match=r"svhn is not in .*: there is no train_32x32\.mat"):
        load("svhn", tmp_path)


def test_files_with_another_checksum_than_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = CIFAR10.train_list
    write_cifar(tmp_path, monkeypatch, "cifar10")
    changed = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"cifar10 in .*cifar-10-batches-py cannot be read: delete the damaged file"):
        load("cifar10", tmp_path)
    write_cifar(tmp_path / "new", monkeypatch, "cifar10")
    assert len(load("cifar10", tmp_path / "new").train_x) == 40
    monkeypatch.setattr(CIFAR10, "train_list", published)
    with pytest.raises(ValueError, match="cannot be read"):
        load("cifar10", tmp_path / "new")


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ConnectionError, match=r"(?s)downloading cifar10 into .*cifar-10-batches-py failed.*no route"):
        load("cifar10", tmp_path, download=True)
