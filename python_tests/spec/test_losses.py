"""The table of losses: the error of each follows from its value."""

from __future__ import annotations

import pytest
import torch

from ceprop_cuda.spec import losses


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_error_of_a_loss_is_minus_its_gradient(name: str) -> None:
    loss = losses.BY_NAME[name]
    answer = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 3, dtype=torch.float64)
    target /= target.sum(1, keepdim=True)  # probabilities, of which cross-entropy's gradient is softmax - y
    (gradient,) = torch.autograd.grad(len(answer) * loss.mean(answer, target), answer)
    torch.testing.assert_close(loss.error(answer, target), -gradient, rtol=1e-12, atol=1e-14)
