"""What happens to whole batches of images on their way to a network: augmentation and normalisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Normalisation(NamedTuple):
    """Turns images of bytes into ``(x / 255 - mean) / std``, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32  # of the result

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)``, uint8 to ``dtype``."""
        mean, std = (torch.tensor(v, dtype=self.dtype, device=images.device)[:, None, None] for v in self[:2])
        return images.to(self.dtype).div_(255).sub_(mean).div_(std)


def random_crop(images: Tensor, generator: torch.Generator, padding: int = 4, mirror: bool = False) -> Tensor:
    """Every image moved by up to ``padding`` pixels each way, its edge pixels repeated beyond the edges, and with
    ``mirror`` every second one, by chance, mirrored left to right first.

    Args:
        images: ``(B, C, H, W)``, of any dtype.
        generator: on the CPU, whatever the images' device: the same draws, the same result everywhere.
    """
    count, _, height, width = images.shape
    down, right = torch.randint(-padding, padding + 1, (2, count, 1), generator=generator, device="cpu")
    # Where each row and column of the result comes from.
    rows = (torch.arange(height, device="cpu") + down).clamp_(0, height - 1)
    columns = (torch.arange(width, device="cpu") + right).clamp_(0, width - 1)
    if mirror:
        is_mirrored = torch.rand(count, 1, generator=generator, device="cpu") < 0.5
        columns = torch.where(is_mirrored, width - 1 - columns, columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    moved = images.gather(2, rows[:, None, :, None].expand_as(images))
    return moved.gather(3, columns[:, None, None, :].expand_as(images))
