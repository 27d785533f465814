"""Learning rules, and training with them."""

from .bptt import BPTT
from .cep import CEP
from .ep import EP
from .groups import groups_of
from .moving import Learned, MovingRule
from .nudged import NudgedRule, Work
from .planning import Plan, plan
from .replicas import Replicas, SomeDiverged
from .rule import Rule, add_to_grads
from .setting import setting
from .trainer import Trainer

__all__ = [
    "BPTT",
    "CEP",
    "EP",
    "Learned",
    "MovingRule",
    "NudgedRule",
    "Plan",
    "Replicas",
    "Rule",
    "SomeDiverged",
    "Trainer",
    "Work",
    "add_to_grads",
    "groups_of",
    "plan",
    "setting",
]
