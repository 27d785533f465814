"""How a CUDA device would run a call: plans for known devices, on any machine."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from known_devices import DEVICES, KIB, PLACES

from ceprop_cuda import _C
from ceprop_cuda.presets import DENSE

OF_PRESETS = {(784, *preset.hidden, 10) for preset in DENSE.values()}
NETWORKS = [*sorted(OF_PRESETS), (5, 3), (3, 1, 1, 2), (9, 100, 33, 31, 7)]
TILE = 16  # units


def plan(device: str | dict[str, int], widths: tuple[int, ...], batch: int = 20, **settings: Any) -> dict[str, Any]:
    """For a device by name or by properties."""
    properties = DEVICES[device] if isinstance(device, str) else device
    given = {"readout": False, "energy": False, "asynchronous": False, "number_bytes": 4, "precision": "exact"}
    return _C.launch_plan(**properties, widths=list(widths), batch=batch, **(given | settings))


def tiles(width: int) -> int:
    return -(-width // TILE)


def padded(width: int) -> int:
    return -(-width // 16) * 16


def shared_bytes(
    found: dict[str, Any], widths: tuple[int, ...], settings: dict[str, Any], resident: bool, depth: int
) -> int:
    """What a block of the plan needs if its weights are in shared memory or not, and its operands come by ``depth``."""
    columns, at_once = found["columns"], found["samples_at_once"]
    number_bytes, precision = settings.get("number_bytes", 4), settings.get("precision", "exact")
    padding = 0 if precision == "exact" else 8
    pack, copies = 16 // number_bytes, 2 if settings.get("energy") else 1

    def of_tile(layer: int) -> int:
        below = padded(widths[layer]) if layer > 0 else 0
        above = padded(widths[layer + 2]) if layer + 2 < len(widths) else 0  # of the layers, or the readout
        in_cluster = found["exchange"] == "cluster"
        # Of a unit, in whole eights of packs, of which seven are to spare.
        fields = -(-(copies * 5 * columns + 7 * pack) // (8 * pack)) * 8 * pack if in_cluster else 0
        return TILE * fields + (TILE + padding) * (below + above) * resident

    operands, contrast = 2 * depth * (TILE + at_once + 2 * padding), 2 * (TILE + 64) * (at_once + pack)
    slices = 256 // (TILE // 4 * at_once // pack) if precision == "exact" else 8 // (at_once // 16)
    of_tiles = max(sum(map(of_tile, block)) for block in found["layers_of_tiles"])
    return number_bytes * (of_tiles + max(operands, slices * TILE * (at_once + padding), contrast))


def check(properties: dict[str, int], widths: tuple[int, ...], batch: int, settings: dict[str, Any]) -> None:
    """A plan takes what there is and no more, and all of the network and of the batch are in it."""
    found = plan(properties, widths, batch, **settings)
    readout, number_bytes = settings.get("readout", False), settings.get("number_bytes", 4)
    layers, step = len(widths) - 1 - readout, 8 if settings.get("precision", "exact") == "exact" else 16
    owned = Counter(layer for block in found["layers_of_tiles"] for layer in block)
    assert owned == {layer: tiles(width) for layer, width in enumerate(widths[1 : layers + 1])}
    most = properties["cluster_blocks" if found["exchange"] == "cluster" else "multiprocessors"]
    assert 1 <= found["blocks"] == len(found["layers_of_tiles"]) <= min(most, 256)
    assert found["columns"] == -(-batch // step) * step
    assert found["samples_at_once"] == min(found["columns"], 64 if number_bytes == 4 else 32)

    def needed(resident: bool, depth: int) -> int:
        return shared_bytes(found, widths, settings, resident, depth)

    resident, depth, most = found["resident"], found["depth_at_once"], properties["shared_bytes"]
    assert depth in (128, 64, 32, 16)
    assert found["shared_bytes"] == needed(resident, depth) <= most
    assert depth == 128 or needed(resident, 2 * depth) > most
    assert resident or needed(True, 16) > most
    units, copies = sum(widths[1 : layers + 1]), 2 if settings.get("energy") else 1
    rows = widths[0] + 4 * widths[-1] + 5 * copies * units + 2 * widths[1] + (1 + 2 * layers) * batch
    assert found["workspace_bytes"] >= rows * found["columns"] * number_bytes + 2 * found["blocks"] * 4
    assert found["step_us"] > 0


@pytest.mark.parametrize("settings", [{}, {"number_bytes": 8}, {"asynchronous": True}, {"energy": True}], ids=str)
@pytest.mark.parametrize("batch", [1, 20, 256, 1000])
@pytest.mark.parametrize("widths", NETWORKS, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_plans_fit_the_device(device: str, widths: tuple[int, ...], batch: int, settings: dict[str, Any]) -> None:
    check(DEVICES[device], widths, batch, settings)


@pytest.mark.parametrize("device", DEVICES)
def test_every_network_has_a_plan(device: str) -> None:
    """No network and no batch is too large for the shared memory of these devices: what does not fit is streamed."""
    draw = random.Random(device)
    for _ in range(200):
        readout = draw.random() < 0.3
        layers = draw.randint(1, 8)
        widths = tuple(int(10 ** draw.uniform(0, draw.choice([1, 2, 3, 4]))) for _ in range(layers + 1 + readout))
        number_bytes = draw.choice([4, 8])
        rounds = number_bytes == 4 and DEVICES[device]["compute_capability"] >= 80
        settings = {
            "readout": readout,
            "energy": draw.random() < 0.5,
            "asynchronous": draw.random() < 0.5,
            "number_bytes": number_bytes,
            "precision": draw.choice(["exact", "tf32", "bf16"] if rounds else ["exact"]),
        }
        check(DEVICES[device], widths, int(10 ** draw.uniform(0, 3.5)), settings)


@pytest.mark.parametrize("device", DEVICES)
def test_a_readout_is_no_layer_but_is_read_from_above(device: str) -> None:
    with_readout = plan(device, (784, 64, 32, 10), readout=True)
    without = plan(device, (784, 64, 32))
    assert with_readout["layers_of_tiles"] == without["layers_of_tiles"]
    if with_readout["resident"] and without["resident"]:
        assert with_readout["shared_bytes"] >= without["shared_bytes"]


def test_enough_blocks_have_a_tile_each() -> None:
    found = plan("H100", (784, 512, 512, 10))
    assert found["exchange"] == "grid"
    assert [len(block) for block in found["layers_of_tiles"]] == [1] * 65


@pytest.mark.parametrize("device", ["RTX 4090", "T4"])
def test_weights_stay_in_shared_memory_up_to_the_width_that_fits(device: str) -> None:
    """Of 784-n-n-10 on a device with as many multiprocessors as tiles, the widest tiles read 2 n neighbours."""
    properties = DEVICES[device] | {"multiprocessors": 1000}

    def of(n: int) -> dict[str, Any]:
        return plan(properties, (784, n, n, 10))

    fits = [n for n in range(16, 2033, 16) if of(n)["resident"]]  # at most 255 tiles: one for every block
    assert fits == list(range(16, fits[-1] + 1, 16))
    for n, resident in ((fits[-1], True), (fits[-1] + 16, False)):
        assert of(n)["resident"] == resident
        check(properties, (784, n, n, 10), 20, {})
    work = max(2 * 16 * (TILE + 24), 256 // 24 * TILE * 24, 2 * (TILE + 64) * (24 + 4))
    bytes_of_widest = [4 * ((n + padded(10)) * TILE + work) for n in (fits[-1], fits[-1] + 16)]
    assert bytes_of_widest[0] <= properties["shared_bytes"] < bytes_of_widest[1]


@pytest.mark.parametrize("number_bytes", [4, 8])
@pytest.mark.parametrize("device", DEVICES)
def test_one_unit_more_and_weights_do_not_fit(device: str, number_bytes: int) -> None:
    fits, too_wide, settings = 16, 20000, {"number_bytes": number_bytes}
    while too_wide - fits > 1:
        n = (fits + too_wide) // 2
        if plan(device, (784, n, n, 10), **settings)["resident"]:
            fits = n
        else:
            too_wide = n
    for n, resident in ((fits, True), (too_wide, False)):
        assert plan(device, (784, n, n, 10), **settings)["resident"] == resident
        check(DEVICES[device], (784, n, n, 10), 20, settings)


def test_networks_lie_where_the_tests_on_a_gpu_expect_them() -> None:
    for place, (widths, batch) in PLACES.items():
        found = plan("H100", widths, batch)
        assert (found["exchange"], found["resident"]) == {
            "cluster": ("cluster", True),
            "grid": ("grid", True),
            "streamed": ("grid", False),
        }[place]


def test_clusters_are_for_networks_of_few_tiles() -> None:
    """A block's tiles come one after the other: a second one costs more than a shorter barrier saves."""
    for device in ("H100", "RTX 5090"):
        blocks = DEVICES[device]["cluster_blocks"]
        found = [plan(device, (784, n * TILE, 10))["exchange"] for n in range(1, 3 * blocks)]
        assert found == ["cluster"] * (blocks - 1) + ["grid"] * (2 * blocks)
    assert plan("A100", (784, TILE, 10))["exchange"] == "grid"


# Microseconds, by the simulated code of a step beside the measured barrier; benchmarks/sass/README.md.
@pytest.mark.parametrize(("batch", "step_us"), [(20, 9), (256, 50)])
def test_a_step_is_expected_to_take_what_its_code_does(batch: int, step_us: float) -> None:
    assert plan("H100", (784, 512, 512, 10), batch)["step_us"] == pytest.approx(step_us, rel=0.2)


def test_tensor_cores_pad_the_batch_to_their_tiles() -> None:
    for precision in ("tf32", "bf16"):
        found = plan("A100", (784, 512, 10), precision=precision)
        assert (found["columns"], found["samples_at_once"]) == (32, 32)


@pytest.mark.parametrize(
    ("device", "widths", "settings", "message"),
    [
        ("H100", (4,) * 10, {}, "networks of at most 8 layers, got 9"),
        ("T4", (4, 3), {"precision": "tf32"}, "need a device of compute capability 8.0, got 7.5"),
        ("A100", (4, 3), {"precision": "bf16", "number_bytes": 8}, "take float32 numbers, got float64"),
        ("A100", (4, 3), {"precision": "fp8"}, "precision must be .*, got"),
    ],
)
def test_what_no_kernel_takes_is_refused(
    device: str, widths: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(device, widths, **settings)


def test_too_little_shared_memory_is_an_error() -> None:
    with pytest.raises(ValueError, match="need more shared memory for a tile than the 4096 bytes"):
        plan(DEVICES["T4"] | {"shared_bytes": 4 * KIB}, (784, 512, 10))


def test_eight_layers_and_a_readout_have_a_plan() -> None:
    check(DEVICES["H100"], (4,) * 10, 20, {"readout": True})
    with pytest.raises(ValueError, match="networks of at most 8 layers, got 9"):
        plan("H100", (4,) * 11, readout=True)


# Tiles are numbered in 16 bits, units and samples in 32.
@pytest.mark.parametrize(
    ("widths", "batch"),
    [((10, 2**20, 10), 20), ((2**24 + 1, 4), 20), ((3, 4, 2), 2**24 + 1), ((3, 4, 2), 2**32 + 1)],
    ids=str,
)
def test_more_than_there_are_numbers_for_is_refused(widths: tuple[int, ...], batch: int) -> None:
    with pytest.raises(ValueError, match=r"take at most 2\^24 samples"):
        plan("H100", widths, batch)


@pytest.mark.parametrize(
    ("widths", "batch"),
    [
        ((2**24, 2**20 - 32, 10), 20),
        ((3, 4, 2), 2**24),
    ],
    ids=str,
)
def test_as_much_as_there_are_numbers_for(widths: tuple[int, ...], batch: int) -> None:
    check(DEVICES["H100"], widths, batch, {})
