"""Networks of layers that are joined otherwise than in a chain, to test on: random ones that settle, and the golden
cases."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from project import GOLDEN
from torch import Tensor, nn

import ceprop_cuda as cep

GOLDEN_GRAPHS = sorted(path.stem for path in GOLDEN.glob("graph_*.npz"))
BATCH = 3


def skip_connections(biases: bool = True) -> list[tuple[str, str, nn.Module]]:
    """Dense, input -> h1 -> h2 -> out, where the input and h1 skip a layer."""
    return [
        ("input", "h1", nn.Linear(7, 6, bias=biases)),
        ("h1", "h2", nn.Linear(6, 5, bias=biases)),
        ("h2", "out", nn.Linear(5, 4, bias=biases)),
        ("input", "h2", nn.Linear(7, 5, bias=False)),
        ("h1", "out", nn.Linear(6, 4, bias=False)),
    ]


def listed_backwards() -> list[tuple[str, str, nn.Module]]:
    """The same in another order, in which the output comes second of the layers."""
    return skip_connections()[::-1]


def maps() -> list[tuple[str, str, nn.Module]]:
    """Convolutions, some with pooling, two of them side by side, and a dense connection that skips a layer."""
    return [
        ("input", "a", nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2))),
        ("a", "b", nn.Conv2d(3, 4, 3, padding=1)),
        ("input", "b", nn.Sequential(nn.Conv2d(2, 4, 1), nn.AvgPool2d(2))),
        ("a", "b", nn.Conv2d(3, 4, 1, bias=False)),
        ("b", "c", nn.Sequential(nn.Conv2d(4, 2, 2, stride=(1, 2), padding=1), nn.MaxPool2d((2, 1)))),
        ("c", "out", nn.Linear(8, 4)),
        ("a", "out", nn.Linear(27, 4, bias=False)),
    ]


GRAPHS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "skips": (skip_connections, (7,)),
    "backwards": (listed_backwards, (7,)),
    "maps": (maps, (2, 7, 6)),
}


def small_graph(name: str, **settings: Any) -> cep.Network:
    """One of GRAPHS in float64, with inner weights so small that every step is a contraction, and biases that spread
    the drives to where the activations bend."""
    connections, shape = GRAPHS[name]
    net = cep.graph(connections(), input_shape=shape, output="out", **settings).double()
    with torch.no_grad():
        for w, v, b in zip(net.weights, net.feedback, net.biases, strict=True):
            w.mul_(0.5 if w.ndim == 2 else 0.7)
            if v is not None:
                v.mul_(0.5)
            if b is not None:
                b.uniform_(0.1, 0.6)
    return net


def batch_for(net: cep.Network) -> tuple[Tensor, Tensor]:
    return torch.rand(BATCH, *net.input_shape, dtype=torch.float64), torch.tensor([0, 3, 1])


def random_states(net: cep.Network, x: Tensor) -> list[Tensor]:
    return [torch.rand_like(s) for s in net.relax(x, 0, backend="reference")]


def phi_by_modules(net: cep.Network, x: Tensor, states: list[Tensor]) -> Tensor:
    """Phi, summed over the batch, by torch's own modules: nothing of the specification."""
    seen = {"input": x, **dict(zip(net.layers, states, strict=True))}
    total = x.new_zeros(())
    for (below, above), module in zip(net.model.ends, net.model, strict=True):
        u = seen[below].flatten(1) if isinstance(module, nn.Linear) else seen[below]
        total = total + (seen[above] * module(u)).sum()
    return total


class GoldenGraph(NamedTuple):
    config: dict[str, Any]
    arrays: dict[str, Tensor]  # float64
    labels: Tensor
    net: cep.Network


def load_golden_graph(name: str) -> GoldenGraph:
    with np.load(GOLDEN / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    labels = arrays.pop("y")
    arrays = {key: array.double() for key, array in arrays.items()}
    connections = []
    for place, c in enumerate(config["connections"]):
        weight = arrays[f"weight{place}"]
        module: nn.Module
        if c["kind"] == "linear":
            module = nn.Linear(weight.shape[1], c["units"], bias=c["bias"])
        else:
            geometry = c["kernel"], c["stride"], c["padding"]
            module = nn.Conv2d(weight.shape[1], c["units"], *geometry, bias=c["bias"])
        connections.append((c["below"], c["above"], module))
    net = cep.graph(
        connections,
        input_shape=config["input"],
        output=config["output"],
        turns=config["turns"],
        activation=config["activation"],
        output_activation=config["output_activation"],
    ).double()
    with torch.no_grad():
        for place, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            w.copy_(arrays[f"weight{place}"])
            if b is not None:
                b.copy_(arrays[f"bias{place}"])
    return GoldenGraph(config, arrays, labels, net)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).double()
