"""How a CUDA device would run a call on a chain with convolutions: plans for known devices, on any machine."""

from __future__ import annotations

import random
from math import prod
from typing import Any

import pytest
import torch
from test_launch_plan import DEVICES

import ceprop_cuda as cep
from ceprop_cuda import _C, ops
from ceprop_cuda.presets import PRESETS

TILE, THREADS = 16, 256


def settings_of(
    net: cep.Network, image: tuple[int, ...], batch: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """What the planner is asked of a network on images."""
    x = torch.empty(batch, *image, dtype=dtype, device="meta")
    asked = ops._launch_settings(net.circuit(), x, "exact")
    return {name: value for name, value in asked.items() if name != "index"}


def plan(device: str | dict[str, int], asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    properties = DEVICES[device] if isinstance(device, str) else device
    return _C.convolution_launch_plan(**properties, **(asked | changes))


def of_preset(name: str, batch: int | None = None) -> dict[str, Any]:
    preset, image = PRESETS[name], (3, 32, 32) if "cifar" in name else (1, 28, 28)
    return settings_of(preset.network(image, 10), image, batch or preset.batch_size)


def small(**settings: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"channels": (3,), "kernels": 3, "pools": "m", "fc": (2,), "batch": 2, **settings}
    batch = chosen.pop("batch")
    return settings_of(cep.convnet((1, 8, 8), **chosen), (1, 8, 8), batch)


def check(properties: dict[str, int], asked: dict[str, Any]) -> None:
    """A plan takes what there is and no more, and there is room for all of the network and of the batch."""
    found = plan(properties, asked)
    at_once, depth, number_bytes = found["columns_at_once"], found["depth_at_once"], asked["number_bytes"]
    assert 1 <= found["blocks"] <= properties["multiprocessors"]
    assert at_once % 8 == 0
    assert at_once <= (64 if number_bytes == 4 else 32)
    assert all(prod(made[6:]) <= at_once for made in asked["made"])  # a tile holds whole windows
    assert depth <= 8 * (THREADS // at_once)  # numbers of rows that a thread has on its way
    assert depth * TILE <= 4 * THREADS  # and of weights
    slices = THREADS // (TILE // 4 * at_once * number_bytes // 16)
    work = max(2 * depth * (TILE + at_once), slices * TILE * at_once)
    assert found["shared_bytes"] == work * number_bytes <= properties["shared_bytes"]
    assert len(found["slices"]) == len(asked["maps"]) - 1
    assert all(1 <= count <= 64 for count in found["slices"])
    copies = 2 if asked["energy"] else 1
    units = [asked["batch"] * prod(shape) for shape in asked["maps"]]
    states = 5 * copies * sum(units[1 : len(units) - asked["readout"]])
    unpooled = sum(
        2 * asked["batch"] * prod(above) * prod(made[6:])
        for above, made, pool in zip(asked["maps"][1:], asked["made"], asked["pools"], strict=False)
        if pool != "i"
    )
    assert found["workspace_bytes"] >= number_bytes * (units[0] + states + unpooled)
    assert found["step_us"] > 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_convnet_of_mnist_is_one_launch(device: str) -> None:
    """Its steps are short beside the calls that a library would need for them."""
    check(DEVICES[device], of_preset("p-conv"))
    check(DEVICES[device], of_preset("p-conv") | {"energy": True})
    if device != "T4":  # these go up through a connection twice a step, which fills a small device
        for changes in ({"free_feedback": True}, {"asynchronous": True}):
            check(DEVICES[device], of_preset("p-conv") | changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cifar10-ep-mse", "cifar10-ep-ce", "cifar10-kp-vf"])
def test_deep_convnets_fill_the_device(name: str, device: str) -> None:
    with pytest.raises(ValueError, match="its convolutions fill this device, where one fused kernel would be slower"):
        plan(device, of_preset(name))


@pytest.mark.parametrize("device", DEVICES)
def test_from_some_batch_on_the_convnet_of_mnist_fills_the_device(device: str) -> None:
    def fits(batch: int) -> bool:
        try:
            plan(device, of_preset("p-conv", batch))
        except ValueError as error:
            assert "fill this device" in str(error)
            return False
        return True

    assert fits(8)
    assert not fits(1000)


@pytest.mark.parametrize("device", DEVICES)
def test_small_chains_have_a_plan(device: str) -> None:
    draw = random.Random(device)
    for _ in range(60):
        count = draw.randint(1, 3)
        image = (draw.randint(1, 4), draw.randint(8, 12), draw.randint(8, 12))
        net = cep.convnet(
            image,
            channels=tuple(draw.randint(1, 20) for _ in range(count)),
            kernels=draw.randint(1, 3),
            paddings=1,
            pools="".join(draw.choice("mai") for _ in range(count)),
            fc=tuple(draw.randint(1, 50) for _ in range(draw.randint(1, 3))),
        )
        asked = settings_of(net, image, draw.randint(1, 8), draw.choice([torch.float32, torch.float64]))
        check(
            DEVICES[device],
            asked | {name: draw.random() < 0.5 for name in ("free_feedback", "energy", "asynchronous")},
        )


def test_a_tile_for_every_block() -> None:
    """Few and small tiles where there are multiprocessors for them, large ones where there are not."""
    asked = of_preset("p-conv", 8)
    few, many = (plan(DEVICES["A100"] | {"multiprocessors": count}, asked) for count in (16, 100))
    assert few["blocks"] == 16
    assert many["blocks"] == 100
    assert many["columns_at_once"] < few["columns_at_once"]
    assert many["step_us"] < few["step_us"]
    assert sum(few["slices"]) < sum(many["slices"])


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        (small(), {"precision": "tf32"}, "takes precision 'exact' only"),
        (small(fc=(2,) * 8), {}, "networks of at most 8 layers, got 9"),
        (small(batch=2**25), {}, r"at most 2\^31 - 1 numbers"),
        (small(), {"made": [(3, 3, 1, 1, 0, 0, 9, 9)]}, "of at most 64 places, got 81"),
        (small(), {"pools": "x"}, "a letter of pools must be one of"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(asked: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan("H100", asked, **changes)


def test_too_little_shared_memory_is_an_error() -> None:
    with pytest.raises(ValueError, match="need more shared memory for a tile than the 4096 bytes"):
        plan(DEVICES["T4"] | {"shared_bytes": 4096}, small())
