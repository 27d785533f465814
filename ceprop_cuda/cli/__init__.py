"""The command line, ``ceprop``."""

from .main import main

__all__ = ["main"]
