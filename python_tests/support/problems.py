"""Circuits, inputs and targets to test on: random ones that converge, and the golden cases."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from project import GOLDEN
from torch import Tensor

from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, Nudge

# Those of chains of dense layers; golden_steps.py and test_graphs.py have the others.
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz") if not re.search("cnn|graph", path.stem))
# Of them those that every kernel takes: gates are the CPU's.
GOLDEN_ACTIVATIONS = {
    "sigm": "sigmoid",
    "sigmoid": "sigmoid",
    "hardsigm": "hard_sigmoid",
    "tanh": "tanh",
    "my_sigmoid": "sigmoid",
}


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float64; 0 if both vanish. Refuses to broadcast, which would hide a wrong shape."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    if torch.equal(a, b):
        return 0.0
    return ((a - b).norm() / b.norm()).item()


class Problem(NamedTuple):
    circuit: Circuit
    x: Tensor  # (B, sizes[0])
    target: Tensor  # (B, sizes[-1]), one-hot


def random_problem(
    sizes: tuple[int, ...] = (7, 6, 5, 4),
    batch: int = 3,
    *,
    activation: str = "sigmoid",
    output_activation: str | None = None,
    dynamics: str = "prototypical",
    dt: float = 0.5,
    clip: bool = True,
    feedback: str = "tied",
    readout: bool = False,
    bias: bool = True,
    schedule: str = "synchronous",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A circuit with new parameters at every call, the same for the same arguments; ``dtype`` only rounds them.

    ``feedback`` is "tied", "free" or "symmetric": free, with V = W to begin with. With ``readout`` the last of
    ``sizes`` is the number of classes. The weights between layers have a spectral norm
    of about 0.45, which makes every step a contraction (no activation is steeper than 1); the input weights and the
    biases spread the drives over about [-0.2, 1], where the activations bend.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, dtype=torch.float64)

    def inner(above: int, below: int) -> Tensor:
        return (0.45 / (above**0.5 + below**0.5) * normal(above, below)).to(dtype)

    weights = [(0.6 / sizes[0] ** 0.5 * normal(sizes[1], sizes[0])).to(dtype)]
    weights += [inner(above, below) for below, above in pairwise(sizes[1:])]
    biases = [(0.1 + 0.5 * uniform(size)).to(dtype) if bias else None for size in sizes[1:]]
    free_feedback = None
    if feedback != "tied":
        inner_weights = weights[1 : len(weights) - readout]
        free_feedback = [w.clone() if feedback == "symmetric" else inner(*w.shape) for w in inner_weights]
    settings = Dynamics(activation, output_activation or activation, dynamics, dt, clip, schedule)
    x = uniform(batch, sizes[0]).to(dtype)
    labels = torch.randint(sizes[-1], (batch,), generator=draw)
    circuit = Circuit(weights, biases, free_feedback, settings, chain(len(weights), readout=readout))
    return Problem(circuit, x, F.one_hot(labels, sizes[-1]).to(dtype))


class Golden(NamedTuple):
    """One training step as independent code computed it."""

    circuit: Circuit  # the parameters before the step
    x: Tensor  # (B, n_in)
    labels: Tensor  # (B,)
    nudge: Nudge
    settings: dict[str, Any]  # of ep_step; if "lr" is among them, of cep_step
    free: list[Tensor]
    nudged: list[list[Tensor]]  # as in EPResult
    changes: list[Tensor]  # in the order of Circuit.parameters(): EP's contrast, or what continual EP adds


def load_golden(name: str) -> Golden:
    """The golden case ``name``, in new tensors at every call."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    labels = arrays.pop("y")
    arrays = {key: array.double() for key, array in arrays.items()}
    x, layers = arrays["x"].flatten(1), len(config["sizes"]) - 1
    is_lab = name.startswith("lab_")
    parameters = [f"weight{layer}" for layer in range(layers)] + [f"bias{layer}" for layer in range(layers)]
    rates = config.get("lr", []) * 2
    is_free = config.get("rule") in ("vf", "c-vf")
    is_continual = config.get("cep") or config.get("rule") == "c-vf"
    if is_free:
        parameters += [f"feedback{layer}" for layer in range(1, layers)]
        rates += config["lr"][1:]

    if is_lab:
        before = [arrays[p] for p in parameters]
        changes = [-arrays[f"{p}_grad"] for p in parameters]
        dynamics = Dynamics(*[GOLDEN_ACTIVATIONS[config["activation"]]] * 2)
    else:
        before = [arrays[f"{p}_before"] for p in parameters]
        changes = [arrays[f"{p}_after"] - arrays[f"{p}_before"] for p in parameters]
        if not is_continual:
            changes = [change / rate for change, rate in zip(changes, rates, strict=True)]
        kind = "prototypical" if config.get("disc", True) else "energy"
        clip = not config.get("no_clamp", False)
        dynamics = Dynamics(*[GOLDEN_ACTIVATIONS[config["act"]]] * 2, kind, config.get("dt", 0.5), clip)

    settings = {"free_steps": config["T"], "nudged_steps": config.get("K") or config["Kmax"]}
    settings |= {"lr": config["lr"]} if is_continual else {}
    settings |= {"gate": config["gate"]} if "gate" in config else {}
    settings |= {"symmetric": True} if config.get("symmetric") else {}
    target = F.one_hot(labels, config["sizes"][-1]).double()
    phases = ["nudged", "nudged_minus"] if config.get("symmetric") else ["nudged"]
    return Golden(
        Circuit(
            before[:layers],
            before[layers : 2 * layers],
            before[2 * layers :] if is_free else None,
            dynamics,
            chain(layers),
        ),
        x,
        labels,
        Nudge(target, config["beta"], "drive" if is_lab else "state"),
        settings,
        [arrays[f"free{layer}"] for layer in range(layers)],
        [[arrays[f"{phase}{layer}"] for layer in range(layers)] for phase in phases],
        changes,
    )
