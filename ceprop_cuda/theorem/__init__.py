"""EP beside BPTT, step by step: see :func:`compare`. ``ceprop theorem`` does it for the papers' networks."""

from .comparison import Agreement, Comparison, Match, compare
from .figures import courses, errors

__all__ = ["Agreement", "Comparison", "Match", "compare", "courses", "errors"]
