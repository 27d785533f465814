"""Learning rules, and training with them."""

from .bptt import BPTT
from .cep import CEP
from .ep import EP
from .groups import groups_of
from .nudged import NudgedRule, Work
from .planning import Plan, plan
from .rule import Rule, add_to_grads
from .setting import setting
from .trainer import Trainer

__all__ = [
    "BPTT",
    "CEP",
    "EP",
    "NudgedRule",
    "Plan",
    "Rule",
    "Trainer",
    "Work",
    "add_to_grads",
    "groups_of",
    "plan",
    "setting",
]
