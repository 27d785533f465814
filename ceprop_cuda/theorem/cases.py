"""The networks and settings on which arXiv 1905.13633 and 2005.04168 show that EP follows BPTT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments.choices import Backend, DynamicsKind
from ..data import Dataset
from ..networks import Network, convnet, mlp
from ..training import CEP, EP, Rule

PIXELS = 28  # height and width of the papers' images, which smaller ones are enlarged to
TOY_SIZES = (5, 50, 10)


@dataclass(frozen=True)
class Case:
    """A network with random weights, as ``nn.Linear`` and ``nn.Conv2d`` draw them, and a rule on it."""

    source: str
    free_steps: int
    nudged_steps: int
    beta: float
    batch: int = 20
    hidden: tuple[int, ...] = (512,)  # units of each hidden layer above the convolutions
    channels: tuple[int, ...] = ()  # of 5 x 5 convolutions, each followed by a 2 x 2 maximum
    activation: str = "tanh"
    dynamics: DynamicsKind = "prototypical"
    lr: float | None = None  # of every connection of continual EP; None: EP
    feedback_angle: float | None = None  # degrees between free feedback and forward weights; None: tied
    is_toy: bool = False  # random inputs and targets instead of images

    def network(self, classes: int) -> Network:
        """A new network, float64; draws from torch's global generator."""
        settings: dict[str, Any] = {
            "activation": self.activation,
            "dynamics": self.dynamics,
            "dt": 0.08,
            "clip": False,
            "feedback": "tied" if self.feedback_angle is None else "free",
        }
        if self.channels:
            net = convnet(
                (1, PIXELS, PIXELS), self.channels, 5, pools="m" * len(self.channels), fc=(classes,), **settings
            )
        elif self.is_toy:
            net = mlp(*TOY_SIZES, **settings)
        else:
            net = mlp(PIXELS**2, *self.hidden, classes, **settings)
        net.double()
        if self.feedback_angle is not None:
            net.set_angle(self.feedback_angle)
        return net

    def rule(self, net: Network, backend: Backend = "auto") -> Rule:
        phases = (net, self.free_steps, self.nudged_steps, self.beta)
        if self.lr is None:
            return EP(*phases, accumulate=True, backend=backend)
        return CEP(*phases, self.lr, backend=backend)

    def batches(self, dataset: Dataset | None, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``count`` batches of images ``(B, 1, 28, 28)`` and class indices, drawn by torch's global generator; of
        the toy, which needs no ``dataset``, of inputs ``(B, 5)``."""
        for _ in range(count):
            if dataset is None:
                yield (
                    torch.rand(self.batch, TOY_SIZES[0], dtype=torch.float64),
                    torch.randint(TOY_SIZES[-1], (self.batch,)),
                )
                continue
            chosen = torch.randperm(len(dataset.train_x))[: self.batch]
            yield enlarged(dataset.train_x[chosen].double()), dataset.train_y[chosen]


def enlarged(images: Tensor) -> Tensor:
    """``(B, 1, H, W)``, interpolated to 28 x 28 where they are not of that size."""
    if images.shape[2:] == (PIXELS, PIXELS):
        return images
    return F.interpolate(images, size=(PIXELS, PIXELS), mode="bilinear")


_EB_1H = Case("arXiv 1905.13633, EB-1h", 800, 80, 0.001, dynamics="energy")
_P_1H = Case("arXiv 1905.13633, P-1h", 150, 10, 0.01)

CASES = {
    "toy": Case(
        "arXiv 1905.13633, toy model: 5-50-10, random data; here without the joints within layers",
        *(800, 80, 0.001),
        batch=1,
        dynamics="energy",
        is_toy=True,
    ),
    "eb-1h": _EB_1H,
    "eb-2h": Case("arXiv 1905.13633, EB-2h", 5000, 150, 0.01, hidden=(512,) * 2, dynamics="energy"),
    "p-1h": _P_1H,
    "p-2h": Case("arXiv 1905.13633, P-2h", 1500, 40, 0.01, batch=1, hidden=(512,) * 2),
    "p-3h": Case("arXiv 1905.13633, P-3h", 5000, 40, 0.015, batch=1, hidden=(512,) * 3),
    "p-conv": Case("arXiv 1905.13633, P-conv", 5000, 10, 0.02, batch=1, channels=(32, 64), activation="hard_sigmoid"),
}

# Continual EP, with tied feedback and with free feedback at two angles.
for _prefix, _base in (
    ("", replace(_P_1H, source="arXiv 2005.04168, prototypical", batch=1, lr=2e-5)),
    ("eb-", replace(_EB_1H, source="arXiv 2005.04168, energy", batch=1, lr=2e-5, beta=0.005)),
):
    CASES[f"{_prefix}c-ep"] = replace(_base, source=f"{_base.source}: C-EP")
    for _angle in (0, 45):
        CASES[f"{_prefix}c-vf-{_angle}"] = replace(
            _base, source=f"{_base.source}: C-VF, feedback at {_angle} degrees", feedback_angle=_angle
        )
