"""How exactly the kernels compute activations and the exponential in them, in units in the last place."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import torch

from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, rho

# Drives of which the argument of the exponential, 2 - 4x or 2x, is a float32 number: no rounding of it hides an error.
DRIVES = [number / 512 for number in range(-2500, 2501)]

# The largest errors on DRIVES, relative and in units of the dtype's epsilon, the same for every CPU instruction set and
# for the emulated CUDA kernels; in brackets those with one term less of the exponential's series:
#             float32          float64
#   sigmoid   1.07 (1.78)      0.90 (1.58)
#   tanh      1.24 (4.09)      1.24 (2.98)
# Absolute errors of the sigmoid say nothing: the largest is 0.73 with either series.
BOUNDS = {"sigmoid": 1.35, "tanh": 1.8}


@cache
def exact(activation: str) -> list[Decimal]:
    """rho of DRIVES, to 40 digits: float64 is not exact enough to judge float64."""
    with localcontext() as context:
        context.prec = 40
        if activation == "sigmoid":
            return [1 / (1 + (2 - 4 * Decimal(x)).exp()) for x in DRIVES]
        powers = [(2 * Decimal(x)).exp() for x in DRIVES]
        return [(power - 1) / (power + 1) for power in powers]


def largest_error(module: Any, activation: str, dtype: torch.dtype) -> float:
    """Relative, in units of the dtype's epsilon, of what ``module`` computes on DRIVES; infinite where it is not 0 but
    should be. With zero weights a unit's next state is rho(bias)."""
    bias = torch.tensor(DRIVES, dtype=dtype)
    circuit = Circuit(
        [torch.zeros(len(bias), 1, dtype=dtype)], [bias], None, Dynamics(activation, activation), chain(1)
    )
    got = module.relax(circuit, torch.zeros(1, 1, dtype=dtype), 1).states[0][0].tolist()
    errors = [
        float(abs(Decimal(g) - wanted) / abs(wanted)) if wanted else float("inf" if g else 0)
        for g, wanted in zip(got, exact(activation), strict=True)
    ]
    return max(errors) / torch.finfo(dtype).eps


def assert_activation_is_right(module: Any, activation: str, dtype: torch.dtype) -> None:
    """Over the whole range of drives, to some units in the last place. With zero weights a unit's next state is
    rho(bias)."""
    fine = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    tiny = torch.logspace(-30, 0, 301, dtype=torch.float64)
    far = torch.tensor([1e3, 1e30], dtype=torch.float64)
    drive = torch.cat([fine, tiny, -tiny, far, -far, torch.zeros(1, dtype=torch.float64)]).to(dtype)
    circuit = Circuit(
        [torch.zeros(len(drive), 1, dtype=dtype)], [drive], None, Dynamics(activation, activation), chain(1)
    )
    got = module.relax(circuit, torch.zeros(1, 1, dtype=dtype), 1).states[0][0]
    exact = rho(activation, drive.double())
    epsilon = torch.finfo(dtype).eps
    # The sigmoid's argument 2 - 4x is rounded, which its slope of at most 1 passes on.
    if activation == "sigmoid":
        relative = (got.double() - exact).abs() / (exact + epsilon)
        allowed = (4 + 4 * drive.double().abs()).clamp(max=200) * epsilon
        assert bool((relative <= allowed).all())
    else:
        assert bool(((got.double() - exact).abs() <= 4 * epsilon * exact.abs()).all())
