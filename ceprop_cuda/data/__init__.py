"""Data sets by name, and batches of them."""

from .batches import Batches, Dataset
from .images import Normalisation, random_crop
from .sets import DATASETS, load

__all__ = ["DATASETS", "Batches", "Dataset", "Normalisation", "load", "random_crop"]
