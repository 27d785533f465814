"""Whether a training step gives what independent code computed, in float64: of dense layers, and of chains."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from problems import Golden, load_golden, relative_error
from project import GOLDEN
from torch import Tensor

import ceprop_cuda as cep

TOLERANCE = 1e-9


def check_states(case: Golden, free: list[Tensor], nudged: list[list[Tensor]]) -> None:
    for phase, expected in zip([free, *nudged], [case.free, *case.nudged], strict=True):
        for s, wanted in zip(phase, expected, strict=True):
            assert relative_error(s, wanted) < TOLERANCE


def check_changes(case: Golden, changes: list[Tensor]) -> None:
    """Changes, not the parameters after the step: where a step moves them little, they would hide its error."""
    for change, wanted in zip(changes, case.changes, strict=True):
        assert relative_error(change, wanted) < TOLERANCE


def assert_step_is_golden(name: str, module: Any) -> None:
    case = load_golden(name)
    if "lr" in case.settings:
        before = [p.clone() for p in case.circuit.parameters()]  # ops move the parameters in place
        ran = module.cep_step(case.circuit, case.x, case.nudge, **case.settings)
        changes = [after - p for after, p in zip(ran.circuit.parameters(), before, strict=True)]
    else:
        ran = module.ep_step(case.circuit, case.x, case.nudge, **case.settings)
        changes = [-gradient for gradient in ran.gradients.parameters()]
    check_states(case, ran.free_states, ran.nudged_states)
    check_changes(case, changes)


GOLDEN_CHAINS = {"lab_cnn_mnist": "hard_sigmoid", "lab_vfcnn_sym_softmax_same": "half_hard_sigmoid"}


def load_chain(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    return config, {key: array if key == "y" else array.double() for key, array in arrays.items()}


def network_of_chain(config: dict[str, Any], arrays: dict[str, Tensor], activation: str) -> cep.Network:
    is_free, is_softmax = config.get("vf", False), config.get("softmax", False)
    net = cep.convnet(
        config["input"],
        config["channels"],
        config["kernels"],
        config["paddings"],
        config["pools"],
        config["fc"],
        activation=activation,
        feedback="free" if is_free else "tied",
        readout="softmax" if is_softmax else None,
    ).double()
    with torch.no_grad():
        for layer, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            w.copy_(arrays[f"weight{layer}"])
            b.copy_(arrays[f"bias{layer}"])
        for layer, v in enumerate(net.feedback):
            if v is not None:
                v.copy_(arrays[f"feedback{layer}"])
    return net


def assert_chain_is_golden(name: str, backend: str) -> None:
    config, arrays = load_chain(name)
    net = network_of_chain(config, arrays, GOLDEN_CHAINS[name])
    rule = cep.EP(
        net,
        config["T"],
        config["K"],
        config["beta"],
        nudging="symmetric" if config["symmetric"] else "positive",
        nudge_at="drive",
        shared_update=config.get("same_update", False),
        backend=backend,
    )
    out = rule.backward(arrays["x"], arrays["y"])
    for phase, states in (
        ("free", out.free_states),
        ("nudged", out.nudged_states),
        ("nudged_minus", out.nudged_minus_states),
    ):
        for layer, s in enumerate(states):
            assert relative_error(s, arrays[f"{phase}{layer}"]) < 1e-9
    assert bool(out.nudged_minus_states) == config["symmetric"]
    for kind, parameters in (("weight", net.weights), ("bias", net.biases), ("feedback", net.feedback)):
        for layer, p in enumerate(parameters):
            if p is not None:
                assert relative_error(p.grad, arrays[f"{kind}{layer}_grad"]) < 1e-9
