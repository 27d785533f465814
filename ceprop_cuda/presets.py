"""The settings of published experiments on MNIST, and those of ``ceprop train``'s default."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .models import mlp
from .network import Network
from .rules import CEP, EP


@dataclass(frozen=True)
class Preset:
    """A network and how to train it. Inputs lie in [0, 1], the loss is the squared error, weights start as
    ``nn.Linear`` draws them.

    Lists over connections hold the input side first; the papers' tables begin at the output.
    """

    source: str
    continual: bool  # CEP if true, else EP with SGD
    hidden: tuple[int, ...]  # units of each hidden layer
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
    feedback: str = "tied"
    feedback_angle: float = 0.0  # degrees between free feedback and forward weights at the start
    schedule: str = "synchronous"
    tolerance: float | None = None

    def network(self, inputs: int, classes: int) -> Network:
        """A new network for samples of ``inputs`` values; draws from torch's global generator."""
        net = mlp(
            inputs,
            *self.hidden,
            classes,
            activation=self.activation,
            output_activation=self.output_activation,
            dynamics=self.dynamics,
            dt=self.dt,
            feedback=self.feedback,
            schedule=self.schedule,
        )
        if net.free_feedback is not None:
            net.set_angle(self.feedback_angle)
        return net

    def rule(self, net: Network, backend: str = "auto") -> EP | CEP:
        """The learning rule on ``net``; ``backend`` as for :class:`ceprop_cuda.EP`."""
        phases = (net, self.free_steps, self.nudged_steps, self.beta)
        if self.continual:
            return CEP(*phases, self.lr, nudging=self.nudging, backend=backend, tolerance=self.tolerance)
        return EP(*phases, nudging=self.nudging, backend=backend, tolerance=self.tolerance)

    def optimizer(self, net: Network) -> torch.optim.Optimizer | None:
        """Plain SGD with a parameter group per connection; None for continual EP, which moves the weights itself."""
        if self.continual:
            return None
        connections = zip(net.weights, net.biases, net.feedback, self.lr, strict=True)
        return torch.optim.SGD(
            {"params": [p for p in (w, b, v) if p is not None], "lr": lr} for w, b, v, lr in connections
        )


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

PRESETS = {
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
