"""Parameters in one piece of memory: refused where they have numbers in common, taken where they only lie between each
other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, Nudge


def interleaved(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two matrices in one piece of memory that have no number in common, which torch cannot tell."""
    both = torch.rand(shape[0], 2 * shape[1])
    return both[:, ::2], both[:, 1::2]


def cep_step_on(weights: list[Tensor], biases: list[Tensor] | None = None) -> Tensor:
    widths = [w.shape[0] for w in weights]
    biases = [torch.zeros(n) for n in widths] if biases is None else biases
    circuit = Circuit(weights, list(biases), None, Dynamics(), chain(len(weights)))
    x, target = torch.rand(3, weights[0].shape[1]), torch.rand(3, widths[-1])
    return ops.cep_step(circuit, x, Nudge(target, 0.5), free_steps=3, nudged_steps=2, lr=[0.1] * len(weights)).steps


@pytest.mark.parametrize("strides", [(1, 1), (0, 1), (2, 1), (1, 3)])
def test_a_parameter_that_overlaps_itself_is_refused(strides: tuple[int, int]) -> None:
    memory = torch.rand(64)
    w = memory.as_strided((4, 5), strides)
    with pytest.raises(
        ValueError, match=r"weights\[0\] is changed in place and must not be an expanded or overlapping"
    ):
        cep_step_on([w, torch.rand(2, 4)])


def test_parameters_that_overlap_each_other_are_refused() -> None:
    memory = torch.rand(64)
    first, second = memory.as_strided((4, 5), (6, 1)), memory.as_strided((3, 4), (5, 1), 3)
    with pytest.raises(ValueError, match=r"weights\[1\] and weights\[0\] are both changed in place and must not share"):
        cep_step_on([first, second])


def test_parameters_beside_each_other_are_taken() -> None:
    first, second = interleaved((4, 4))
    apart = [first.clone(), second.clone()]
    assert cep_step_on([first, second], [torch.zeros(4), torch.zeros(4)]).tolist() == [3, 2]
    assert cep_step_on([torch.rand(64).as_strided((4, 5), (5, 1)), torch.rand(80).as_strided((2, 4), (3, 7))]).min() > 0
    assert not torch.equal(first, apart[0])


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_both_backends_refuse_shared_memory(backend: str) -> None:
    net = cep.mlp(4, 4, 4)
    net.model[2].weight = torch.nn.Parameter(net.model[1].weight.data[:, :])
    with pytest.raises(ValueError, match=r"weights\[1\] and weights\[0\] are both changed in place"):
        cep.CEP(net, 3, 2, 0.5, 0.1, backend=backend).step(torch.rand(2, 4), torch.tensor([0, 1]))
