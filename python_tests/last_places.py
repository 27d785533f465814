"""How exactly the kernels compute the exponential, in units in the last place: of an activation's largest error."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import torch

from ceprop_cuda.spec.dynamics import Circuit, Dynamics

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
    circuit = Circuit([torch.zeros(len(bias), 1, dtype=dtype)], [bias], None, Dynamics(activation, activation))
    got = module.relax(circuit, torch.zeros(1, 1, dtype=dtype), 1).states[0][0].tolist()
    errors = [
        float(abs(Decimal(g) - wanted) / abs(wanted)) if wanted else float("inf" if g else 0)
        for g, wanted in zip(got, exact(activation), strict=True)
    ]
    return max(errors) / torch.finfo(dtype).eps
