"""The settings of published experiments on MNIST and CIFAR-10, and those of ``ceprop train``'s default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from .models import convnet, mlp
from .network import Network
from .rules import BPTT, CEP, EP


class Convolutions(NamedTuple):
    """As for :func:`ceprop_cuda.convnet`, input side first."""

    channels: tuple[int, ...]
    kernels: int
    paddings: int | tuple[int, ...]
    pools: str


class CosineThenConstant(CosineAnnealingLR):
    """Falls as CosineAnnealingLR does and stays at ``eta_min``, where that rises again after ``T_max`` epochs.

    No SequentialLR of torch's pieces does it: ConstantLR goes back to the initial rates when its turn comes.
    """

    def get_lr(self) -> list[float | torch.Tensor]:
        if self.last_epoch > self.T_max:
            return [group["lr"] for group in self.optimizer.param_groups]
        return super().get_lr()


@dataclass(frozen=True)
class Preset:
    """A network and how to train it. The loss is the squared error, with a readout the cross-entropy; weights start as
    torch draws them.

    Lists over connections hold the input side first; the papers' tables begin at the output.
    """

    source: str
    continual: bool  # CEP if true, else EP with SGD
    hidden: tuple[int, ...]  # units of each dense hidden layer
    free_steps: int
    nudged_steps: int
    beta: float
    lr: tuple[float, ...]  # of each connection
    epochs: int
    batch_size: int = 20
    activation: str = "sigmoid"
    output_activation: str | None = None  # None: the same
    dynamics: str = "prototypical"
    dt: float = 0.2  # step size, of energy dynamics only
    nudging: str = "positive"
    nudge_at: str | None = None  # None: as the rules have it
    feedback: str = "tied"
    feedback_angle: float | None = 0.0  # degrees between free feedback and forward weights at first; None: drawn apart
    shared_update: bool = False
    gate: str | None = None
    readout: str | None = None
    schedule: str = "synchronous"
    tolerance: float | None = None
    data: str = "mnist"  # what the settings were found for
    augmented: bool = False  # trains on images moved and, where that keeps their class, mirrored by chance
    convolutions: Convolutions | None = None  # below the dense layers
    momentum: float = 0.0
    weight_decay: float = 0.0
    bptt: bool = False  # learns by the exact gradient instead, with SGD, through the last nudged_steps free steps
    cosine_epochs: int | None = None  # the rates fall along a cosine to 1e-5 for so long and stay there; None: constant

    def network(self, inputs: int | Sequence[int], classes: int) -> Network:
        """A new network for samples of the shape ``inputs``; draws from torch's global generator.

        Raises ValueError if there are convolutions and samples of that shape do not fit them.
        """
        shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        settings: dict[str, Any] = {
            "activation": self.activation,
            "output_activation": self.output_activation,
            "dynamics": self.dynamics,
            "dt": self.dt,
            "feedback": self.feedback,
            "readout": self.readout,
            "schedule": self.schedule,
        }
        if self.convolutions is None:
            net = mlp(math.prod(shape), *self.hidden, classes, **settings)
        else:
            net = convnet(shape, *self.convolutions, fc=(*self.hidden, classes), **settings)
        if net.free_feedback is not None and self.feedback_angle is not None:
            net.set_angle(self.feedback_angle)
        return net

    def rule(self, net: Network, backend: str = "auto") -> EP | CEP | BPTT:
        """The learning rule on ``net``; ``backend`` as for :class:`ceprop_cuda.EP`.

        Raises ValueError if BPTT is asked for together with what it has not.
        """
        if self.bptt:
            lacking = {
                "shared update of forward and feedback weights": self.shared_update,
                "tolerance": self.tolerance is not None,
                "gate": self.gate is not None,
            }
            for setting, is_asked in lacking.items():
                if is_asked:
                    raise ValueError(f"BPTT has no {setting}: it takes the exact gradient through a number of steps")
            return BPTT(net, self.free_steps, self.nudged_steps, backend=backend)
        phases = (net, self.free_steps, self.nudged_steps, self.beta)
        settings: dict[str, Any] = {
            "nudging": self.nudging,
            "nudge_at": self.nudge_at,
            "shared_update": self.shared_update,
            "backend": backend,
            "tolerance": self.tolerance,
            "gate": self.gate,
        }
        if self.continual:
            return CEP(*phases, self.lr, weight_decay=self.weight_decay, **settings)
        return EP(*phases, **settings)

    def optimizer(self, net: Network) -> torch.optim.Optimizer | None:
        """SGD with a parameter group per connection; None for continual EP, which moves the weights itself."""
        if self.continual and not self.bptt:
            return None
        connections = zip(net.weights, net.biases, net.feedback, self.lr, strict=True)
        groups = [{"params": [p for p in (w, b, v) if p is not None], "lr": lr} for w, b, v, lr in connections]
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer | None) -> LRScheduler | None:
        """Of the rates of :meth:`optimizer`, to be stepped after every epoch; None if they stay as they are."""
        if optimizer is None or self.cosine_epochs is None:
            return None
        return CosineThenConstant(optimizer, self.cosine_epochs, eta_min=1e-5)


_P_2H = Preset(
    source="arXiv 1905.13633, P-2h",
    continual=False,
    hidden=(512, 512),
    free_steps=100,
    nudged_steps=20,
    beta=0.5,
    lr=(0.2, 0.05, 0.005),
    epochs=50,
)

DENSE = {
    "digits": Preset(
        source="C-EP on the bundled digits, for a first look",
        continual=True,
        hidden=(256,),
        free_steps=20,
        nudged_steps=10,
        beta=0.5,
        lr=(0.04, 0.02),
        epochs=40,
        batch_size=10,
        activation="hard_sigmoid",
        output_activation="linear",
        nudging="symmetric",
        data="digits",
    ),
    "eb-1h": Preset(
        source="arXiv 1905.13633, EB-1h",
        continual=False,
        hidden=(512,),
        free_steps=100,
        nudged_steps=12,
        beta=0.5,
        lr=(0.1, 0.05),
        epochs=30,
        dynamics="energy",
    ),
    "eb-2h": Preset(
        source="arXiv 1905.13633, EB-2h",
        continual=False,
        hidden=(512, 512),
        free_steps=400,
        nudged_steps=40,
        beta=0.5,
        lr=(0.4, 0.1, 0.01),
        epochs=50,
        dynamics="energy",
    ),
    "p-1h": Preset(
        source="arXiv 1905.13633, P-1h",
        continual=False,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.1,
        lr=(0.08, 0.04),
        epochs=30,
    ),
    "p-2h": _P_2H,
    "p-3h": Preset(
        source="arXiv 1905.13633, P-3h",
        continual=False,
        hidden=(512, 512, 512),
        free_steps=180,
        nudged_steps=20,
        beta=0.5,
        lr=(0.2, 0.05, 0.01, 0.002),
        epochs=100,
    ),
    "ep-1h": Preset(
        source="arXiv 2005.04168, EP-1h",
        continual=False,
        hidden=(512,),
        free_steps=30,
        nudged_steps=10,
        beta=0.1,
        lr=(0.08, 0.04),
        epochs=30,
    ),
    "ep-2h": replace(_P_2H, source="arXiv 2005.04168, EP-2h"),
    "c-ep-1h": Preset(
        source="arXiv 2005.04168, C-EP-1h",
        continual=True,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.2,
        lr=(0.0056, 0.0028),
        epochs=100,
    ),
    "c-ep-2h": Preset(
        source="arXiv 2005.04168, C-EP-2h",
        continual=True,
        hidden=(512, 512),
        free_steps=100,
        nudged_steps=20,
        beta=0.5,
        lr=(0.01, 0.0018, 0.00018),
        epochs=150,
    ),
    "c-vf-1h": Preset(
        source="arXiv 2005.04168, C-VF-1h",
        continual=True,
        hidden=(512,),
        free_steps=40,
        nudged_steps=15,
        beta=0.2,
        lr=(0.0076, 0.0038),
        epochs=100,
        nudging="random_sign",
        feedback="free",
    ),
    "c-vf-2h": Preset(
        source="arXiv 2005.04168, C-VF-2h",
        continual=True,
        hidden=(512, 512),
        free_steps=100,
        nudged_steps=20,
        beta=0.35,
        lr=(0.009, 0.0016, 0.00016),
        epochs=150,
        nudging="random_sign",
        feedback="free",
    ),
}

_P_CONV = Preset(
    source="arXiv 1905.13633, P-conv",
    continual=False,
    hidden=(),
    convolutions=Convolutions(channels=(32, 64), kernels=5, paddings=0, pools="mm"),
    free_steps=200,
    nudged_steps=10,
    beta=0.4,
    lr=(0.15, 0.035, 0.015),
    epochs=40,
    activation="hard_sigmoid",
)

# One nudge as large as P-conv's errs by much; two of opposite signs err by less, and the same rates learn better.
_EP_CONV = replace(
    _P_CONV,
    source="EP on the network of P-conv, nudged both ways, asynchronous",
    free_steps=100,
    nudged_steps=5,
    nudging="symmetric",
    schedule="asynchronous",
    tolerance=1e-3,
)

_CIFAR10_MSE = Preset(
    source="arXiv 2006.03824, squared error",
    continual=False,
    hidden=(),
    convolutions=Convolutions(channels=(128, 256, 512, 512), kernels=3, paddings=(1, 1, 1, 0), pools="mmmm"),
    free_steps=250,
    nudged_steps=30,
    beta=0.5,
    lr=(0.25, 0.15, 0.1, 0.08, 0.05),
    epochs=120,
    batch_size=128,
    activation="half_hard_sigmoid",
    nudging="symmetric",
    nudge_at="drive",
    data="cifar10",
    augmented=True,
    momentum=0.9,
    weight_decay=3e-4,
    cosine_epochs=100,
)

CONVOLUTIONAL = {
    "p-conv": _P_CONV,
    "ep-conv": _EP_CONV,
    "c-ep-conv": replace(
        _EP_CONV,
        source="C-EP on the network of P-conv, as ep-conv with a twentieth of its rates",
        continual=True,
        lr=(0.0075, 0.00175, 0.00075),
    ),
    "cifar10-ep-mse": _CIFAR10_MSE,
    "cifar10-ep-ce": replace(
        _CIFAR10_MSE,
        source="arXiv 2006.03824, cross-entropy of a softmax readout",
        nudged_steps=25,
        beta=1.0,
        readout="softmax",
    ),
    # Forward and feedback weights are drawn apart; equal updates and weight decay bring them together.
    "cifar10-kp-vf": replace(
        _CIFAR10_MSE,
        source="arXiv 2006.03824, the same with free feedback and shared updates (Kolen-Pollack)",
        beta=1.0,
        readout="softmax",
        feedback="free",
        feedback_angle=None,
        shared_update=True,
    ),
}

PRESETS = {**DENSE, **CONVOLUTIONAL}
