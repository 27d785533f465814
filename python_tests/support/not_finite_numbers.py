"""Networks that get numbers which are not finite: whether the ops store nothing of them, and whether they are seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from convolution_variants import CHAINS, build_chain, chain_variants
from torch import Tensor
from variants import copy_of

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Nudge

BATCH, CLASSES = 7, 5


def dense(**settings: Any) -> tuple[cep.Network, Tensor]:
    return cep.mlp(12, 16, 9, CLASSES, **settings), torch.rand(BATCH, 12)


NETWORKS: dict[str, Callable[[], tuple[cep.Network, Tensor]]] = {
    "tied": dense,
    "free": lambda: dense(feedback="free", activation="hard_sigmoid"),
    "energy": lambda: dense(dynamics="energy", schedule="asynchronous"),
    "readout": lambda: dense(readout="softmax"),
    "convolutions": lambda: (cep.convnet((2, 9, 8), (3, 4), 3, 1, "ma", (CLASSES,)), torch.rand(BATCH, 2, 9, 8)),
}
VALUES = [math.nan, math.inf, -math.inf]


def case(network: str) -> tuple[cep.Network, Tensor, Tensor]:
    net, x = NETWORKS[network]()
    return net, x, F.one_hot(torch.arange(BATCH) % CLASSES, CLASSES).float()


def assert_ops_store_nothing(module: Any, network: str) -> None:
    """Whatever of a call is not finite, and again what follows is as if there had been none."""
    net, x, target = case(network)
    phases: dict[str, Any] = {"free_steps": 4, "nudged_steps": 2}
    fine = _run_ops(module, net, x, target, phases)
    at = {1: "drive"}  # where an activation would make a number of an infinite target
    for number in range(2 + len(list(net.parameters()))):
        broken, *given = copy.deepcopy((net, x, target))
        tensor = [*given, *broken.parameters()][number]
        tensor.data.view(-1)[tensor.numel() // 2] = 1e38 if number == 0 else VALUES[number % 3]
        before = copy_of(broken.circuit()).parameters()
        for symmetric in (False, True):
            ep, continual = _run_ops(module, broken, *given, phases | {"symmetric": symmetric}, at.get(number))
            assert (ep.steps.tolist(), continual.steps.tolist()) == ([-1] * (2 + symmetric), [-1] * (2 + 2 * symmetric))
            assert not any(gradient.any() for gradient in ep.gradients.parameters())
            for p, q in zip(continual.circuit.parameters(), before, strict=True):
                assert torch.equal(p.cpu().view(torch.int32), q.view(torch.int32)), number
    for found, wanted in zip(_run_ops(module, net, x, target, phases), fine, strict=True):
        assert found.steps.tolist() == [4, 2]
        assert all(map(torch.equal, found.nudged_states[0], wanted.nudged_states[0]))


@torch.no_grad()
def _run_ops(
    module: Any, net: cep.Network, x: Tensor, target: Tensor, settings: dict[str, Any], at: str | None = None
) -> tuple[Any, Any]:
    nudge = Nudge(target, 0.5, *net.nudging_point(at, None))
    ep = module.ep_step(net.circuit(), x, nudge, **settings)
    rates = [0.1] * len(net.weights)
    return ep, module.cep_step(copy_of(net.circuit()), x, nudge, **settings, lr=rates)


def assert_not_finite_inputs_stay_visible(module: Any, pool: str, bad: float) -> None:
    """In the states of their own sample, above a convolution with this pooling and a dense layer."""
    one_convolution = next(number for number, drawn in enumerate(CHAINS) if len(drawn.convolutions) == 1)
    variant = {**chain_variants()[0], "chain": one_convolution, "activation": "tanh"}
    (circuit, x, _), _ = build_chain(variant, torch.float32)
    made = tuple(replace(c, pool=pool) for c in circuit.structure.convolutions)
    below = replace(circuit, structure=chain(1, made), weights=circuit.weights[:1])
    units = reference.relax(below, x, 0).states[0][0].numel()
    weights = [circuit.weights[0], torch.rand(3, units) / 100]
    circuit = replace(circuit, weights=weights, biases=[*circuit.biases[:1], None], structure=chain(2, made))
    x[1, 0, 2, 3] = bad
    got, wanted = (m.relax(circuit, x, 3).states for m in (module, reference))
    for a, b in zip(got, wanted, strict=True):
        assert bool(a[0].isfinite().all())
        assert torch.equal(a[1].isnan().any(), b[1].isnan().any())
