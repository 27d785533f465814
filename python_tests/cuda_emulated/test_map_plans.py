"""How clusters of a CUDA device would take chains with maps through their phases: plans for known devices, on any
machine."""

from __future__ import annotations

from typing import Any

import pytest
from known_devices import DEVICES

from ceprop_cuda import _C

# P-conv's network: the input, and what is above each connection; then kernels, strides, paddings, windows.
MAPS = ((1, 28, 28), (32, 12, 12), (64, 4, 4), (10, 1, 1))
POOLED = (5, 5, 1, 1, 0, 0, 2, 2)


def plan(name: str = "H100", **settings: Any) -> dict[str, Any]:
    given = {
        "maps": MAPS, "convolutions": (POOLED, POOLED), "pools": ("max", "max"), "readout": False,
        "free_feedback": False, "asynchronous": False, "batch": 20, "number_bytes": 4,
    }  # fmt: skip
    return _C.map_plan(**DEVICES[name], **{**given, **settings})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_network_of_mnist_takes_four_blocks_a_sample(asynchronous: bool) -> None:
    found = plan(asynchronous=asynchronous)
    assert {key: found[key] for key in ("team", "blocks", "teams", "rounds")} == {
        "team": "cluster",
        "blocks": 4,
        "teams": 28,  # where seven of 16 run at once
        "rounds": 1,
    }
    assert found["shared_bytes"] <= DEVICES["H100"]["shared_bytes"]
    assert [joint["kernel"] for joint in found["joints"]] == [5, 0]


@pytest.mark.parametrize(("batch", "rounds"), [(1, 1), (28, 1), (29, 2), (200, 8)])
def test_samples_take_rounds(batch: int, rounds: int) -> None:
    assert plan(batch=batch)["rounds"] == rounds


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("number_bytes", [4, 8])
@pytest.mark.parametrize("channels", [1, 7, 33, 96])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_plan_fits(name: str, kernel: int, channels: int, number_bytes: int) -> None:
    above = 12 - kernel + 1
    maps = ((1, 16, 16), (channels, 12, 12), (2 * channels, above, above), (10, 1, 1))
    made = ((5, 5, 1, 1, 0, 0, 1, 1), (kernel, kernel, 1, 1, 0, 0, 1, 1))
    settings = {"maps": maps, "convolutions": made, "pools": ("none", "none"), "number_bytes": number_bytes}
    weights = 2 * channels * channels * kernel**2 * number_bytes
    # What every block has: states, twice, and what a group of 32 channels below gets from patches of 4 x 4 positions.
    states = 2 * channels * (12 * 12 + 2 * above**2) * number_bytes
    regions = (-(-above // 4)) ** 2 * (3 + kernel) ** 2 * 32 * number_bytes
    try:
        found = plan(name, **settings)
    except ValueError as error:
        if DEVICES[name]["cluster_blocks"] == 0:
            return
        assert "do not fit" in str(error)
        assert states + regions + weights / 16 > 0.5 * DEVICES[name]["shared_bytes"]
        return
    assert found["shared_bytes"] <= DEVICES[name]["shared_bytes"]
    assert found["blocks"] * found["shared_bytes"] > weights
    assert found["blocks"] <= DEVICES[name]["cluster_blocks"]


def test_a_block_never_lacks_work_in_a_turn() -> None:
    """Else it might be two turns behind the others, whose mail it would take for that of the turn before."""
    settings: dict[str, Any] = {
        "maps": ((1, 8, 8), (2, 8, 8), (32, 8, 8), (2, 1, 1)),
        "convolutions": ((5, 5, 1, 1, 2, 2, 1, 1),) * 2,
        "pools": ("none", "none"),
    }
    assert plan(**settings, asynchronous=True)["blocks"] <= 2 < plan(**settings)["blocks"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"free_feedback": True}, "where there are convolutions teams take tied weights"),
        ({"maps": (*MAPS, (10, 1, 1)), "readout": True}, "teams have no readout"),
        ({"maps": MAPS[:3]}, "where there are convolutions teams take a dense output layer"),
        ({"convolutions": (POOLED, (5, 3, 1, 1, 0, 0, 2, 2))}, "kernels of 3 x 3 or 5 x 5, with a stride of 1"),
        ({"convolutions": (POOLED, (5, 5, 1, 2, 0, 0, 2, 2))}, "kernels of 3 x 3 or 5 x 5, with a stride of 1"),
        ({"maps": (*MAPS[:3], *[(10, 1, 1)] * 7)}, "teams take 2 to 8 layers, got 9"),
        ({"number_bytes": 8}, "the maps and weights do not fit the shared memory of a cluster"),
    ],
)
def test_what_clusters_do_not_take(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**settings)


def test_devices_without_clusters_have_no_plan() -> None:
    with pytest.raises(ValueError, match="the device has no clusters"):
        plan("A100")
