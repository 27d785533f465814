"""The softmax of logits far beyond the range of the exponential, as a loss and as a readout: finite and right."""

from __future__ import annotations

import pytest
import torch
from large_logits import LOGITS, assert_softmax_is_right, draws

from ceprop_cuda import ops
from ceprop_cuda.spec import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convolution", [False, True], ids=["dense", "convolution"])
@pytest.mark.parametrize("readout", [False, True], ids=["linear outputs", "readout"])
def test_softmax(kernels: str, readout: bool, convolution: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(ops, dtype, readout, convolution)


@pytest.mark.parametrize("readout", [False, True])
def test_the_logits_are_what_they_should_be(readout: bool) -> None:
    """Beyond what the exponential takes, in float64 and so in float32."""
    _, problems = draws(torch.float64, readout)
    for (problem, nudge), logits in zip(problems, LOGITS.values(), strict=True):
        found = reference.ep_step(problem.circuit, problem.x, nudge, free_steps=4, nudged_steps=2).output
        assert (found - problem.x.new_tensor(logits)).abs().max().item() < 10
        assert found.abs().max().item() > 900
