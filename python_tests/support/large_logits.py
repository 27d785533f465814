"""Problems with logits far beyond the range of the exponential, and whether their softmax is right."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from agreement import assert_agreement
from convolution_variants import Chain, build_chain, same
from kernel_runs import all_runs
from problems import Problem
from torch import Tensor
from variants import build

from ceprop_cuda.spec.dynamics import Nudge

# Of six classes: two that share nearly all probability, one without any, in every part of the range.
LOGITS = {
    "large": [1000, 999.5, -1000, 998, 0, 990],
    "small": [-1000, -1000.5, -3000, -1002, -2000, -1010],
}
CHAIN = Chain((2, 6, 7), 2, (3,), ((3, 2),), (same(1),), (5, 6))


def with_logits(problem: Problem, logits: list[float]) -> Problem:
    """The last bias gives these, before what comes from the layer below."""
    biases: list[Tensor | None] = [*problem.circuit.biases[:-1], problem.x.new_tensor(logits)]
    return problem._replace(circuit=replace(problem.circuit, biases=biases))


def draws(
    dtype: torch.dtype, readout: bool, convolution: bool = False
) -> tuple[dict[str, Any], list[tuple[Problem, Nudge]]]:
    """The settings of a network, and problems on it with both kinds of LOGITS."""
    variant: dict[str, Any] = {
        "dynamics": "prototypical",
        "schedule": "synchronous",
        "feedback": "tied",
        "activation": "sigmoid",
        "output_activation": "sigmoid" if readout else "linear",
        "bias": True,
        "readout": readout,
        "loss": "cross_entropy",
        "at": "drive",
        **({"chain": 0} if convolution else {"shape": ((7, 9, 5, 6), 4)}),
    }
    found = []
    for logits in LOGITS.values():
        for seed in range(3 if dtype == torch.float32 else 1):  # see test_kernels.check
            problem, nudge = build_chain(variant, dtype, seed, [CHAIN]) if convolution else build(variant, dtype, seed)
            found.append((with_logits(problem, logits), nudge))
    return variant, found


def assert_softmax_is_right(module: Any, dtype: torch.dtype, readout: bool, convolution: bool = False) -> None:
    variant, problems = draws(dtype, readout, convolution)
    assert_agreement(partial(all_runs, variant), problems, module=module)
