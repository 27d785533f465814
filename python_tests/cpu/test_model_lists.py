"""What csrc/model says once, beside what the specification says: lists of names, and the terms of a contrast."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ceprop_cuda import ops
from ceprop_cuda.ops import _C
from ceprop_cuda.spec.dynamics import ACTIVATIONS
from ceprop_cuda.spec.losses import LOSSES


def test_activations_have_the_same_names_in_the_same_order() -> None:
    assert ops.build_info()["activations"].split(", ") == list(ACTIVATIONS)


def test_losses_have_the_same_names_in_the_same_order() -> None:
    assert ops.build_info()["losses"].split(", ") == list(LOSSES)


def phi_gradient(above: Tensor, below: Tensor) -> Tensor:
    """dPhi/dW of one connection, Phi = sum over the batch of above . (W below); above (B, n), below (B, m)."""
    weight = torch.zeros(above.shape[1], below.shape[1], dtype=above.dtype, requires_grad=True)
    phi = (above * torch.nn.functional.linear(below, weight)).sum()
    return torch.autograd.grad(phi, weight)[0]


@pytest.mark.parametrize("of_feedback", [False, True])
@pytest.mark.parametrize(("free_feedback", "shared_update"), [(False, False), (True, False), (True, True)])
def test_terms_of_a_contrast_are_the_change_of_the_gradient_of_phi(
    free_feedback: bool, shared_update: bool, of_feedback: bool
) -> None:
    """Tied and shared: between the states r and r'. Vector field: one layer moves, the other is held fixed."""
    draw = torch.Generator().manual_seed(0)
    (above, below), (above_later, below_later), (above_fixed, below_fixed) = (
        (torch.rand(5, 4, generator=draw, dtype=torch.float64), torch.rand(5, 3, generator=draw, dtype=torch.float64))
        for _ in range(3)
    )
    apart = free_feedback and not shared_update
    if not apart:
        wanted = phi_gradient(above_later, below_later) - phi_gradient(above, below)
    elif of_feedback:
        wanted = phi_gradient(above_fixed, below_later) - phi_gradient(above_fixed, below)
    else:
        wanted = phi_gradient(above_later, below_fixed) - phi_gradient(above, below_fixed)
    above_moves, below_moves = _C.contrast_terms(
        free_feedback=free_feedback, shared_update=shared_update, of_input=False, of_feedback=of_feedback
    )
    found = torch.zeros(4, 3, dtype=torch.float64)
    if above_moves:
        found += (above_later - above).T @ (below_fixed if apart else below_later)
    if below_moves:
        found += (above_fixed if apart else above).T @ (below_later - below)
    assert torch.allclose(found, wanted, rtol=1e-13, atol=1e-13)


def test_nothing_moves_below_the_input_s_connection() -> None:
    for free_feedback, shared_update in product([False, True], repeat=2):
        terms = _C.contrast_terms(
            free_feedback=free_feedback, shared_update=shared_update, of_input=True, of_feedback=False
        )
        assert terms == (True, False)
