"""The cost models of the CUDA kernels: they predict something for every preset, near what the planner says."""

from __future__ import annotations

from dataclasses import replace

import convolutions
import pytest
import torch
from dense_step import case_of, predicted_ms
from devices import A100, H100, Device, known_device
from eager_launches import eager_launches_of_steps
from torch.utils.flop_counter import FlopCounterMode

from ceprop_cuda import reference
from ceprop_cuda.bench.cases import all_cases
from ceprop_cuda.presets import DENSE, PRESETS


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("precision", ["exact", "tf32", "bf16"])
def test_every_dense_preset_has_a_prediction(name: str, precision: str) -> None:
    for device in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"):
        ms = predicted_ms(name, device, precision)
        assert known_device(device).launch_us / 1e3 < ms < 100
        preset = DENSE[name]
        assert predicted_ms(preset, device, precision) == ms
        longer = replace(preset, free_steps=2 * preset.free_steps)
        assert ms < predicted_ms(longer, device, precision) < 2 * ms


def test_convolutions_have_none() -> None:
    with pytest.raises(ValueError, match="no convolutions"):
        predicted_ms("p-conv", "H100")


def test_unknown_devices_have_none() -> None:
    assert predicted_ms("ep-1h", "NVIDIA GeForce RTX 2080") is None


def test_cases_of_the_benchmark_have_predictions() -> None:
    (relaxing,) = (case for case in all_cases() if case.name == "relax-2h-b20")
    assert 0 < predicted_ms(relaxing, "H100") < predicted_ms("ep-2h-b20", "H100")


def test_launches_of_eager_are_counted() -> None:
    """Layer 0: two products, their sum, zeros for the nudge, rho as three operators with a sum before it and one after;
    layer 1 lacks what comes from above. A nudge adds y - s and its product with beta."""
    free, nudged = eager_launches_of_steps(case_of("ep-1h-b20"))
    assert free == (2 + 1 + 1 + 3 + 2) + (1 + 1 + 3 + 2)
    assert nudged == free + 2


@pytest.mark.parametrize("device", [A100, H100], ids=lambda device: device.name)
@pytest.mark.parametrize("batch", [1, 8, 20])
def test_the_model_of_convnets_is_near_the_planner(batch: int, device: Device) -> None:
    """They count the same tiles, by other rates."""
    asked = convolutions.settings_of("p-conv", batch)
    found = convolutions.plan_of(asked, device)
    predicted = sum(convolutions.step_us(asked, device, found).values())
    assert found["step_us"] / 3 < predicted < found["step_us"] * 3


def test_a_larger_batch_takes_longer() -> None:
    def predicted(batch: int) -> float:
        asked = convolutions.settings_of("p-conv", batch)
        found = convolutions.plan_of(asked, A100)
        return sum(convolutions.step_us(asked, A100, found).values())

    assert predicted(1) < predicted(8) < predicted(20)


def test_multiplications_of_a_librarys_step() -> None:
    """What eager PyTorch multiplies, as torch counts it, is more by known convolutions."""
    net, x = PRESETS["p-conv"].network((1, 28, 28), 10), torch.rand(2, 1, 28, 28)

    def flops(steps: int) -> int:
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            reference.relax(net.circuit(), x, steps)
        return counted.get_total_flops()

    step = convolutions.library_step(convolutions.settings_of("p-conv", 2))
    assert 2 * step.eager_multiply_adds == flops(3) - flops(2)
    picked = 2 * 64 * 8 * 8 * 32 * 25
    of_input = 2 * 32 * 24 * 24 * 25
    assert step.eager_multiply_adds - step.multiply_adds == picked + of_input


@pytest.mark.parametrize("device", [A100, H100], ids=lambda device: device.name)
def test_the_model_of_a_library_is_near_the_planner(device: Device) -> None:
    for preset, batch in (("p-conv", 1024), ("cifar10-ep-mse", 128)):
        asked = convolutions.settings_of(preset, batch)
        predicted = sum(list(convolutions.library_ms(convolutions.library_step(asked), device, False).values())[:3])
        assert predicted == pytest.approx(convolutions.plan_of(asked, device)["step_us"] / 1e3, rel=0.6)
