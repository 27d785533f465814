"""torch models seen as networks that settle."""

from .models import convnet, graph, mlp
from .network import Network

__all__ = ["Network", "convnet", "graph", "mlp"]
