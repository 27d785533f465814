"""Equilibrium propagation with fused kernels: relaxation and local learning in one native call."""

from .models import convnet, graph, mlp
from .network import Network
from .planning import Plan, plan
from .rules import BPTT, CEP, EP, StepResult
from .trainer import Diverged, Trainer
from .version import __version__

__all__ = [
    "BPTT",
    "CEP",
    "EP",
    "Diverged",
    "Network",
    "Plan",
    "StepResult",
    "Trainer",
    "__version__",
    "convnet",
    "graph",
    "mlp",
    "plan",
]
