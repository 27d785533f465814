"""What the CUDA kernel of chains with convolutions makes of numbers at the ends of their range, under the emulation;
test_cuda_kernels.py asks the same of that of dense layers."""

from __future__ import annotations

import shutil

import pytest
import torch
from emulated_chains import SOURCE
from emulated_device import EmulatedDevice, compiled_kernels
from large_logits import assert_softmax_is_right
from settling import assert_tolerances_are_exact
from variants import TOLERANCES

from ceprop_cuda.spec.connections import Convolution

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    folder = tmp_path_factory.mktemp("cuda_extremes")
    return EmulatedDevice(compiled_kernels("plain", SOURCE), folder, multiprocessors=3)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("readout", [False, True])
def test_softmax_of_large_logits(device: EmulatedDevice, readout: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(device, dtype, readout, convolution=True)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tolerances_are_exact(device: EmulatedDevice, dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(device, dtype, (Convolution(),))
