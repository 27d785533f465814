"""How a CUDA device would run a call on a chain with convolutions: plans for known devices, on any machine."""

from __future__ import annotations

import random
from math import prod
from typing import Any

import pytest
import torch
from known_devices import DEVICES

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
    """A plan of one launch takes what there is and no more, and there is room for all of the network and the batch."""
    found = plan(properties, asked, engine="launch")
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
def test_the_convnet_of_mnist_goes_to_a_library(device: str) -> None:
    """One launch takes 5.6 times as long on an H100 as its multiplications would. It runs where it is asked for."""
    for changes in ({}, {"energy": True}, {"free_feedback": True}):
        asked = of_preset("p-conv", 20) | changes
        assert plan(device, asked)["exchange"] == "library"
        check(DEVICES[device], asked)


def test_a_step_of_the_convnet_of_mnist_is_expected_to_take_what_it_took() -> None:
    """254 us in one launch on an H100: 53.6 ms for its 210 steps, and what is done once."""
    assert plan("H100", of_preset("p-conv", 20), engine="launch")["step_us"] == pytest.approx(254, rel=0.05)


def test_either_engine_can_be_asked_for() -> None:
    for engine, exchange in (("launch", "grid"), ("graph", "library")):
        assert plan("H100", small(), engine=engine)["exchange"] == exchange
        assert plan("H100", of_preset("p-conv", 20), engine=engine)["exchange"] == exchange
    with pytest.raises(ValueError, match="teams take dense layers"):
        plan("H100", small(), engine="teams")
    with pytest.raises(ValueError, match="engine must be one of 'auto', 'launch', 'teams', 'graph', got 'grid'"):
        plan("H100", small(), engine="grid")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cifar10-ep-mse", "cifar10-ep-ce", "cifar10-kp-vf"])
def test_deep_convnets_fill_the_device(name: str, device: str) -> None:
    found = plan(device, of_preset(name))
    assert found["exchange"] == "library"
    assert found["step_us"] > 1000


@pytest.mark.parametrize("device", DEVICES)
def test_from_some_batch_on_a_small_convnet_fills_the_device(device: str) -> None:
    """Its steps are short beside the calls that a library would need for them, for few samples."""
    found = [plan(device, small(batch=batch)) for batch in (1, 8, 64, 256, 1000, 4000)]
    by_library = [one["exchange"] == "library" for one in found]
    assert by_library == sorted(by_library)
    assert {by_library[0], by_library[-1]} == {False, True}
    times = [one["step_us"] for one in found]
    assert times == sorted(times)


def test_tensor_cores_are_a_librarys() -> None:
    asked = of_preset("cifar10-ep-mse")
    exact, rounded = (plan("H100", asked, precision=precision) for precision in ("exact", "tf32"))
    assert rounded["exchange"] == "library"
    assert rounded["step_us"] < exact["step_us"] / 2
    assert plan("H100", small(), precision="tf32")["exchange"] == "library"


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        (small(fc=(2,) * 8), {}),  # layers
        (small(batch=2**25), {}),  # numbers of a map that 32 bits count
        (small(), {"made": [(3, 3, 1, 1, 0, 0, 9, 9)]}),  # places of a window
    ],
)
def test_what_one_launch_has_no_room_for_goes_to_a_library(asked: dict[str, Any], changes: dict[str, Any]) -> None:
    assert plan("H100", asked, **changes)["exchange"] == "library"


def test_too_little_shared_memory_for_a_tile() -> None:
    too_little = DEVICES["T4"] | {"shared_bytes": 4096}
    assert plan(too_little, small())["exchange"] == "library"
    with pytest.raises(ValueError, match="one launch has no room for this network or this batch"):
        plan(too_little, small(), engine="launch")


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
    asked = of_preset("p-conv", 2)
    few, many = (plan(DEVICES["A100"] | {"multiprocessors": n}, asked, engine="launch") for n in (16, 100))
    assert few["blocks"] == 16
    assert many["blocks"] == 100
    assert many["columns_at_once"] < few["columns_at_once"]
    assert many["step_us"] < few["step_us"]
    assert sum(few["slices"]) < sum(many["slices"])


@pytest.mark.parametrize(
    ("device", "changes", "message"),
    [
        ("H100", {"precision": "bf16"}, "take precision 'exact' or 'tf32' on CUDA, got 'bf16'"),
        ("T4", {"precision": "tf32"}, r"needs a device of compute capability 8\.0, got 7\.5"),
        ("H100", {"precision": "tf32", "number_bytes": 8}, "takes float32 numbers, got float64"),
        ("H100", {"pools": "x"}, "a letter of pools must be one of"),
    ],
)
def test_what_is_refused(device: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(device, small(), **changes)
