"""Every loss once: what it gives to the output units or logits, and its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """Both functions take the answer and the target, ``(B, classes)``."""

    error: Callable[[Tensor, Tensor], Tensor]  # minus the gradient of a sample's loss by its answer, (B, classes)
    mean: Callable[[Tensor, Tensor], Tensor]  # over the batch, 0-d
    of_logits: bool  # the answer is logits: linear output units or a readout


BY_NAME = {
    "mse": Loss(
        lambda answer, target: target - answer,
        lambda answer, target: F.mse_loss(answer, target, reduction="sum") / (2 * len(answer)),
        of_logits=False,
    ),
    "cross_entropy": Loss(
        lambda answer, target: target - answer.softmax(dim=1),
        F.cross_entropy,
        of_logits=True,
    ),
}
LOSSES = tuple(BY_NAME)
