"""Equilibrium propagation with fused kernels: relaxation and local learning in one native call."""

from .networks import Network, convnet, graph, mlp
from .records import Diverged, StepResult
from .training import BPTT, CEP, EP, Plan, Replicas, Rule, Trainer, plan
from .version import __version__

__all__ = [
    "BPTT",
    "CEP",
    "EP",
    "Diverged",
    "Network",
    "Plan",
    "Replicas",
    "Rule",
    "StepResult",
    "Trainer",
    "__version__",
    "convnet",
    "graph",
    "mlp",
    "plan",
]
