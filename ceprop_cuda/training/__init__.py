"""Learning rules, and training with them."""

from .bptt import BPTT
from .cep import CEP, UPDATES
from .ep import EP
from .nudged import NUDGINGS, NudgedRule
from .planning import Plan, plan
from .rule import Rule
from .trainer import Trainer

__all__ = ["BPTT", "CEP", "EP", "NUDGINGS", "UPDATES", "NudgedRule", "Plan", "Rule", "Trainer", "plan"]
