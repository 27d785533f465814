"""What a preset says: a network and how to train it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from ..arguments.choices import Backend, DynamicsKind, Feedback, Gate, NudgeAt, Nudging, Readout, Schedule
from ..networks import Network, convnet, mlp
from ..training import BPTT, CEP, EP, Rule, groups_of


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
    continual: bool  # CEP if true, else EP
    hidden: tuple[int, ...]  # units of each dense hidden layer
    free_steps: int
    nudged_steps: int
    beta: float
    lr: tuple[float, ...]  # of each connection
    epochs: int
    batch_size: int = 20
    activation: str = "sigmoid"
    output_activation: str | None = None  # None: the same
    dynamics: DynamicsKind = "prototypical"
    dt: float = 0.2  # step size, of energy dynamics only
    nudging: Nudging = "positive"
    nudge_at: NudgeAt | None = None  # None: as the rules have it
    feedback: Feedback = "tied"
    feedback_angle: float | None = 0.0  # degrees between free feedback and forward weights at first; None: drawn apart
    shared_update: bool = False
    gate: Gate | None = None
    readout: Readout | None = None
    schedule: Schedule = "synchronous"
    tolerance: float | None = None
    data: str = "mnist"  # what the settings were found for
    augmented: bool = False  # trains on images moved and, where that keeps their class, mirrored by chance
    convolutions: Convolutions | None = None  # below the dense layers
    momentum: float = 0.0
    weight_decay: float = 0.0
    bptt: bool = False  # learns by the exact gradient instead, with SGD, through the last nudged_steps free steps
    cosine_epochs: int | None = None  # the rates fall along a cosine to 1e-5 for so long and stay there; None: constant

    def network(self, inputs: int | Sequence[int], classes: int) -> Network:
        """A new network for samples of the shape ``inputs``, whose ``forward`` relaxes for as many steps as the rule's
        free phase; draws from torch's global generator.

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
            "free_steps": self.free_steps,
            "schedule": self.schedule,
        }
        if self.convolutions is None:
            net = mlp(math.prod(shape), *self.hidden, classes, **settings)
        else:
            net = convnet(shape, *self.convolutions, fc=(*self.hidden, classes), **settings)
        if net.free_feedback is not None and self.feedback_angle is not None:
            net.set_angle(self.feedback_angle)
        return net

    def rule(self, net: Network, backend: Backend = "auto", gradients_only: bool = False) -> Rule:
        """The learning rule on ``net``; ``backend`` as for :class:`ceprop_cuda.EP`. EP and CEP move the parameters
        themselves; with ``gradients_only`` EP leaves that to an optimizer.

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
        if not gradients_only:
            settings |= {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return EP(*phases, **settings)

    def optimizer(self, net: Network) -> torch.optim.Optimizer | None:
        """For :class:`ceprop_cuda.BPTT` SGD with a parameter group per connection; None for rules that move the
        parameters themselves."""
        if not self.bptt:
            return None
        return torch.optim.SGD(groups_of(net, self.lr), momentum=self.momentum, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer | None) -> LRScheduler | None:
        """Of the rates of :meth:`optimizer`, to be stepped after every epoch; None if they stay as they are."""
        if optimizer is None or self.cosine_epochs is None:
            return None
        return CosineThenConstant(optimizer, self.cosine_epochs, eta_min=1e-5)
