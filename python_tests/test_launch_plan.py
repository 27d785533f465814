"""How a CUDA device would run a call: plans for known devices, on any machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ceprop_cuda import _C

KIB = 1024
DEVICES: dict[str, dict[str, int]] = {
    "A100": {"compute_capability": 80, "multiprocessors": 108, "shared_bytes": 163 * KIB, "cluster_blocks": 0},
    "H100": {"compute_capability": 90, "multiprocessors": 132, "shared_bytes": 227 * KIB, "cluster_blocks": 16},
    "RTX 4090": {"compute_capability": 89, "multiprocessors": 128, "shared_bytes": 99 * KIB, "cluster_blocks": 0},
    "T4": {"compute_capability": 75, "multiprocessors": 40, "shared_bytes": 64 * KIB, "cluster_blocks": 0},
    "RTX 5090": {"compute_capability": 120, "multiprocessors": 170, "shared_bytes": 99 * KIB, "cluster_blocks": 8},
}
NETWORKS = [(784, 512, 10), (784, 512, 512, 10), (784, 512, 512, 512, 10), (5, 3), (3, 1, 1, 2), (9, 100, 33, 31, 7)]
TILE = 16  # units


def plan(device: str, widths: tuple[int, ...], batch: int = 20, **settings: Any) -> dict[str, Any]:
    given = {"readout": False, "energy": False, "asynchronous": False, "number_bytes": 4, "precision": "exact"}
    return _C.launch_plan(**DEVICES[device], widths=list(widths), batch=batch, **(given | settings))


def tiles(width: int) -> int:
    return -(-width // TILE)


def padded(width: int) -> int:
    return -(-width // 16) * 16


@pytest.mark.parametrize("settings", [{}, {"number_bytes": 8}, {"asynchronous": True}, {"energy": True}], ids=str)
@pytest.mark.parametrize("batch", [1, 20, 256, 1000])
@pytest.mark.parametrize("widths", NETWORKS, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_plans_fit_the_device(device: str, widths: tuple[int, ...], batch: int, settings: dict[str, Any]) -> None:
    found, properties = plan(device, widths, batch, **settings), DEVICES[device]
    assert 0 < found["shared_bytes"] <= properties["shared_bytes"]
    most = properties["cluster_blocks" if found["exchange"] == "cluster" else "multiprocessors"]
    assert 1 <= found["blocks"] <= min(most, 256)
    owned = Counter(layer for block in found["layers_of_tiles"] for layer in block)
    assert owned == {layer: tiles(width) for layer, width in enumerate(widths[1:])}
    assert batch <= found["columns"] < batch + 8
    assert found["samples_at_once"] <= found["columns"]
    assert found["samples_at_once"] % 8 == found["columns"] % 8 == found["depth_at_once"] % 16 == 0
    assert found["workspace_bytes"] > 0
    assert found["step_us"] > 0


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
    common = {"readout": False, "energy": False, "asynchronous": False, "number_bytes": 4, "precision": "exact"}

    def of(n: int) -> dict[str, Any]:
        return _C.launch_plan(**properties, widths=[784, n, n, 10], batch=20, **common)

    fits = [n for n in range(16, 2033, 16) if of(n)["resident"]]  # at most 255 tiles: one for every block
    assert fits == list(range(16, fits[-1] + 1, 16))
    widest, too_wide = of(fits[-1]), of(fits[-1] + 16)
    assert not too_wide["resident"]
    n, columns, depth = fits[-1], widest["columns"], widest["depth_at_once"]
    operands, sums = 2 * depth * (TILE + columns), (256 // columns) * TILE * (columns + 4)
    work = max(operands, sums, 2 * (TILE + 64) * (columns + 4), 256)
    weights = max(padded(n) + padded(10), padded(n)) * TILE
    assert widest["shared_bytes"] == 4 * (weights + work)
    least_work = max(2 * 16 * (TILE + columns), sums, 2 * (TILE + 64) * (columns + 4), 256)
    assert 4 * ((padded(n + 16) + padded(10)) * TILE + least_work) > properties["shared_bytes"]


def test_clusters_are_for_networks_with_a_block_for_every_tile() -> None:
    assert plan("H100", (784, 15 * TILE, 10))["exchange"] == "cluster"
    assert plan("H100", (784, 16 * TILE, 10))["exchange"] == "grid"
    assert plan("RTX 5090", (784, 7 * TILE, 10))["exchange"] == "cluster"
    assert plan("RTX 5090", (784, 8 * TILE, 10))["exchange"] == "grid"
    assert plan("A100", (784, TILE, 10))["exchange"] == "grid"


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
    tiny = DEVICES["T4"] | {"shared_bytes": 4 * KIB}
    settings = {"readout": False, "energy": False, "asynchronous": False, "number_bytes": 4, "precision": "exact"}
    with pytest.raises(ValueError, match="need more shared memory for a tile than the 4096 bytes"):
        _C.launch_plan(**tiny, widths=[784, 512, 10], batch=20, **settings)
