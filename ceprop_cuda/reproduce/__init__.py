"""The papers' tables run again. ``ceprop reproduce`` does it."""
