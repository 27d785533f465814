"""Good arguments of torch.ops.ceprop_cuda, for dense layers and for a chain with convolutions."""

from __future__ import annotations

from typing import Any

import torch
from convolution_variants import build_chain, chain_variants
from problems import Problem, random_problem
from torch import Tensor

from ceprop_cuda import ops
from ceprop_cuda.op_arguments import dynamics_arguments, parameters_of
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Circuit, Nudge

torch_ops = torch.ops.ceprop_cuda
OPS = ["relax", "ep_step", "cep_step"]
DYNAMICS = {
    "activation": "sigmoid",
    "output_activation": "sigmoid",
    "dynamics": "prototypical",
    "dt": 0.2,
    "clip": True,
    "schedule": "synchronous",
    "feedback": "free",
    "readout": False,
}
NUDGE = {"tolerance": None, "beta": 0.3, "nudge_at": "state", "loss": "mse"}
PHASES = {"free_steps": 4, "nudged_steps": 3, "symmetric": True, "shared_update": False}
SIZES = (6, 9, 5)


def positional(op: str, dtype: torch.dtype = torch.float32, symmetric: bool = True) -> list[Any]:
    """Good positional arguments: x, weights, biases, feedback_weights, then what the op takes besides."""
    circuit, x, _ = random_problem(SIZES, 3, feedback="free", dtype=dtype)
    first = [x, circuit.weights, circuit.biases, circuit.free_feedback]
    labels = torch.tensor([0, 4, 2])
    states = [x.new_empty(3, n) for n in SIZES[1:]]
    if op == "relax":
        return [*first, [torch.rand_like(s) for s in states], labels]
    if op == "ep_step":
        return [*first, labels]
    return [*first, labels, states, [torch.empty_like(s) for s in states * (1 + symmetric)]]


def keywords(op: str) -> dict[str, Any]:
    if op == "relax":
        return {"steps": 4, **NUDGE, **DYNAMICS}
    extra = {"accumulate": True} if op == "ep_step" else {"lr": [0.1, 0.2], "weight_decay": 0.01, "update": "auto"}
    return {**PHASES, **NUDGE, **DYNAMICS, **extra}


def every_op(x: Tensor, circuit: Circuit, nudge: Nudge) -> list[Tensor]:
    states, steps = ops.relax(circuit, x, 9, None, nudge, tolerance=1e-2)
    ep = ops.ep_step(circuit, x, nudge, free_steps=4, nudged_steps=3)
    cep = ops.cep_step(circuit, x, nudge, free_steps=4, nudged_steps=3, lr=[0.1, 0.2])
    found = [*states, *ep.gradients.parameters(), *cep.free_states, *cep.nudged_states[0], cep.output * 2]
    return [*found, steps, ep.steps, cep.steps]


def arguments_of_chain(op: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """Good arguments of an op for a small network with free feedback."""
    problem, nudge = build_chain({**chain_variants()[0], "chain": 0, "feedback": "free"}, dtype)
    return arguments_of(op, problem, nudge, **changes)


def arguments_of(op: str, problem: Problem, nudge: Nudge, **changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of an op for a problem, with other settings."""
    circuit, x, _ = problem
    first, settings = [x, *parameters_of(circuit, x)], dynamics_arguments(circuit)
    settings |= {"tolerance": None, "beta": 0.3, "nudge_at": nudge.at, "loss": nudge.loss}
    states = [torch.rand_like(s) for s in reference.relax(circuit, x, 0).states]
    if op == "relax":
        return [*first, states, nudge.target], settings | {"steps": 3} | changes
    settings |= {"free_steps": 3, "nudged_steps": 2, "symmetric": False, "shared_update": False}
    if op == "ep_step":
        return [*first, nudge.target], settings | {"accumulate": True} | changes
    learning = {"lr": [0.1] * len(circuit.weights), "weight_decay": 0.01, "update": "auto"}
    return [*first, nudge.target, states, [torch.empty_like(s) for s in states]], settings | learning | changes
