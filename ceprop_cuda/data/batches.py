"""Data sets as whole tensors, and batches of them.

Decoding and transforming samples one by one in Python takes longer than a fused training step on them, so nothing
here works on single samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments.checks import one_of, seed_number, whole_number
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

    def next_order(self) -> Tensor:
        """The numbers of the samples ``(N,)`` int64 in the order of the next epoch, which begins by this."""
        if not self.shuffle:
            return torch.arange(len(self.x), device="cpu")
        return torch.randperm(len(self.x), generator=self._generator, device="cpu")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.next_order() if self.shuffle else None
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
