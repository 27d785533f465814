"""Batches and the data sets' readers."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from mnist_files import FOLDERS, write_idx, write_mnist

from ceprop_cuda.data import Batches, load


def numbered(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(samples)[:, None].float(), torch.arange(samples)


def test_batches_in_order_keep_the_smaller_last_one() -> None:
    batches = Batches(*numbered(7), batch_size=3)
    assert len(batches) == 3
    assert [y.tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [y.tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_shuffled_batches_hold_every_sample_once_and_keep_pairs_together() -> None:
    batches = Batches(*numbered(23), batch_size=5, shuffle=True, seed=1)
    epochs = [list(batches), list(batches)]
    for epoch in epochs:
        assert [len(y) for _, y in epoch] == [5, 5, 5, 5, 3]
        assert all(torch.equal(x[:, 0].long(), y) for x, y in epoch)
        assert sorted(torch.cat([y for _, y in epoch]).tolist()) == list(range(23))
    first, second = (torch.cat([y for _, y in epoch]).tolist() for epoch in epochs)
    assert first != second
    assert first != list(range(23))


def test_batches_of_one_seed_have_the_same_orders_whatever_else_draws_numbers() -> None:
    orders = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        orders.append([y.tolist() for _, y in Batches(*numbered(20), batch_size=4, shuffle=True, seed=5)])
    assert orders[0] == orders[1]
    assert orders[0] != [y.tolist() for _, y in Batches(*numbered(20), batch_size=4, shuffle=True, seed=6)]


def test_state_taken_within_an_epoch_is_that_of_the_next() -> None:
    batches = Batches(*numbered(20), batch_size=4, shuffle=True, seed=2)
    list(batches)
    running = iter(batches)
    next(running)
    state = batches.state_dict()
    list(running)
    expected = [y.tolist() for _, y in batches]
    other = Batches(*numbered(20), batch_size=4, shuffle=True, seed=99)
    other.load_state_dict(state)
    assert [y.tolist() for _, y in other] == expected


@pytest.mark.parametrize(
    ("samples_x", "samples_y", "batch_size", "message"),
    [
        (4, 3, 2, "same number of samples.* 4 and 3"),
        (0, 0, 2, "at least 1, got 0 and 0"),
        (4, 4, 0, "batch_size must be an int >= 1, got 0"),
        (4, 4, 2.0, "batch_size must be an int >= 1, got 2.0"),
    ],
)
def test_batches_refuse_wrong_arguments(samples_x: int, samples_y: int, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(numbered(samples_x)[0], numbered(samples_y)[1], batch_size)


def test_digits() -> None:
    digits = load("digits")
    assert digits.classes == 10
    assert digits.train_x.shape == (1438, 1, 8, 8)
    assert digits.test_x.shape == (359, 1, 8, 8)
    assert digits.train_x.dtype == torch.float32
    assert digits.train_y.dtype == digits.test_y.dtype == torch.int64
    assert digits.train_x.min() == 0
    assert digits.train_x.max() == 1
    # Facts about the published data: class sizes and the sum of all pixels.
    sizes = digits.train_y.bincount() + digits.test_y.bincount()
    assert sizes.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert 16 * (digits.train_x.double().sum() + digits.test_x.double().sum()) == 561718
    share = digits.test_y.bincount() / sizes
    assert share.min() > 0.19
    assert share.max() < 0.21


def test_digits_are_not_in_both_parts_and_can_be_told_apart() -> None:
    digits = load("digits", dtype=torch.float64)
    assert digits.train_x.dtype == torch.float64
    distances = torch.cdist(digits.test_x.flatten(1), digits.train_x.flatten(1))
    assert distances.min() > 0
    wrong = digits.train_y[distances.argmin(1)] != digits.test_y
    assert wrong.float().mean() < 0.03  # by the nearest neighbour; would be 0.9 if labels did not belong to images


def test_digits_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_torchvision(name, *args, **kwargs):  # type: ignore[no-untyped-def]
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_torchvision)
    assert len(load("digits").train_x) == 1438
    with pytest.raises(ModuleNotFoundError, match="torchvision"):
        load("mnist")


@pytest.mark.parametrize("name", FOLDERS)
def test_torchvision_sets_are_read_whole(name: str, tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path, FOLDERS[name])
    data = load(name, tmp_path)
    for part, x, y in (("train", data.train_x, data.train_y), ("t10k", data.test_x, data.test_y)):
        images = torch.from_numpy(arrays[f"{part}-images-idx3-ubyte"])
        assert torch.equal(x, images[:, None].float() / 255)
        assert torch.equal(y, torch.from_numpy(arrays[f"{part}-labels-idx1-ubyte"]))
    assert data.classes == 10
    assert load(name, tmp_path, dtype=torch.float64).test_x.dtype == torch.float64


def test_a_missing_file_is_named_with_its_folder_and_the_remedy(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"MNIST/raw: there is no t10k-labels-idx1-ubyte.*download=True"):
        load("mnist", tmp_path)


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ConnectionError, match=r"(?s)downloading mnist into .*MNIST/raw failed.*no route to host"):
        load("mnist", tmp_path, download=True)


def test_download_leaves_present_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route to host")

    write_mnist(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert len(load("mnist", tmp_path, download=True).train_x) == 30


@pytest.mark.parametrize("damage", ["empty", "truncated", "wrong rank", "fewer labels"])
def test_a_damaged_file_is_told(damage: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    if damage == "empty":
        images.write_bytes(b"")
    elif damage == "truncated":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "wrong rank":
        write_idx(images, np.zeros((30, 784)))
    else:
        write_idx(labels, np.zeros(29))
    with pytest.raises(ValueError, match=r"mnist in .*MNIST/raw cannot be (read|used)"):
        load("mnist", tmp_path)


def test_an_unknown_name_is_refused() -> None:
    names = "'digits', 'mnist', 'fashion-mnist', 'kmnist', 'cifar10', 'cifar100', 'svhn'"
    with pytest.raises(ValueError, match=f"must be one of {names}, got 'cifar'"):
        load("cifar")
