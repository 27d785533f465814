"""How teams of a CUDA device's blocks would run a call: plans for known devices, on any machine."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from known_devices import DEVICES, KERNELS
from torch._subclasses import FakeTensorMode

import ceprop_cuda as cep
from ceprop_cuda import _C, ops

SMALL = ((784, 512, 512, 10), 20)
OF_A_TEAM = ("team", "blocks", "teams", "warps", "samples", "groups", "rounds", "step_us", "layers_of_octets")


def plan(name: str, widths: tuple[int, ...], batch: int, **settings: Any) -> dict[str, Any]:
    properties = {key: DEVICES[name][key] for key in ("multiprocessors", "shared_bytes", "cluster_blocks")}
    clusters = properties["multiprocessors"] // properties["cluster_blocks"] if properties["cluster_blocks"] else 0
    given = {"asynchronous": False, "number_bytes": 4, "clusters": clusters, "continual": False, "tolerance": False}
    return _C.launch_plan(**properties, widths=widths, batch=batch, **{**given, **settings})


def most_of_a_block(widths: tuple[int, ...], batch: int, number_bytes: int, blocks: int) -> int:
    """Bytes of the octets that some block has if ``blocks`` share all: their weights, whose sources are padded to 16,
    and numbers of all samples."""

    def padded(width: int) -> int:
        return -(-width // 16) * 16

    octets = sum(-(-width // 8) for width in widths[1:])
    sources = [padded(below) + padded(above) for below, above in zip((0, *widths[1:]), (*widths[2:], 0), strict=False)]
    groups = -(-batch // (4 if number_bytes == 4 else 2))
    return -(-octets // blocks) * (8 * max(sources) + groups * 7 * 32) * number_bytes


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("number_bytes", [4, 8])
@pytest.mark.parametrize("batch", [1, 20, 64, 257])
@pytest.mark.parametrize("widths", [(784, 512, 10), (784, 512, 512, 512, 10), (5, 3), (9, 100, 33, 31, 7)])
def test_a_plan_takes_all_samples_and_no_more_than_there_is(
    name: str, widths: tuple[int, ...], batch: int, number_bytes: int
) -> None:
    for continual in (False, True):
        for tolerance in (False, True):
            settings = {"number_bytes": number_bytes, "continual": continual, "tolerance": tolerance}
            try:
                found = plan(name, widths, batch, **settings)
            except ValueError as error:
                assert "do not fit" in str(error)
                needed = most_of_a_block(widths, batch, number_bytes, DEVICES[name]["multiprocessors"])
                assert needed > 0.7 * DEVICES[name]["shared_bytes"]
                continue
            assert found["shared_bytes"] <= DEVICES[name]["shared_bytes"]
            assert found["launch_blocks"] <= DEVICES[name]["multiprocessors"]
            for prefix in ("", "moving_") if continual else ("",):
                part = {key: found[f"{prefix}{key}"] for key in OF_A_TEAM}
                blocks = {"block": 1, "cluster": DEVICES[name]["cluster_blocks"]}
                assert part["blocks"] == blocks.get(part["team"], part["blocks"])
                assert part["blocks"] * part["teams"] <= found["launch_blocks"]
                assert part["warps"] <= found["launch_warps"] <= 12
                at_a_time = part["teams"] * part["groups"] * part["samples"]
                assert (part["rounds"] - 1) * at_a_time < batch <= part["rounds"] * at_a_time
                assert part["step_us"] > 0
                if tolerance:  # all samples at once, in all blocks
                    assert (part["team"], part["rounds"]) == ("grid", 1)
                if prefix:  # all samples at once, in one team
                    assert (part["teams"], part["rounds"]) == (1, 1)
                    assert part["team"] in (found["team"], "grid")
                octets = sorted(chain.from_iterable(part["layers_of_octets"]))
                assert octets == [layer for layer, width in enumerate(widths[1:]) for _ in range(-(-width // 8))]


def test_plans_for_an_h100() -> None:
    found = plan("H100", *SMALL, clusters=7)
    layers = found.pop("layers_of_octets")
    assert [*chain.from_iterable(layers)] == [0] * 64 + [1] * 64 + [2] * 2
    assert {len(block) for block in layers} == {8, 9}
    assert found.pop("sources_of_layers") == [(4, 0), (4, 1), (4, 0)]  # 10 outputs are a pair of octets
    assert found.pop("step_us") > 0
    assert found == {
        "team": "cluster",
        "blocks": 16,
        "teams": 7,
        "warps": 9,
        "samples": 3,
        "groups": 1,
        "rounds": 1,
        "launch_blocks": 112,
        "launch_warps": 9,
        "shared_bytes": 178_048,
        "workspace_bytes": 2064,
    }
    found = plan("H100", *SMALL, clusters=7, continual=True)
    assert (found["team"], found["moving_team"], found["moving_blocks"], found["moving_warps"]) == (
        "cluster", "grid", 65, 10,
    )  # fmt: skip
    found = plan("H100", (784, 512, 10), 20, continual=True)
    assert (found["team"], found["moving_team"], found["moving_groups"]) == ("cluster", "cluster", 5)
    assert plan("H100", (784, 16, 10), 256)["team"] == "block"
    assert plan("H100", (784, 512, 512, 512, 10), 20)["team"] == "grid"
    for continual in (False, True):  # as README says
        assert plan("H100", (784, 1500, 1500, 10), 20, continual=continual)["team"] == "grid"
    with pytest.raises(ValueError, match="do not fit into the shared memory of the blocks"):
        plan("H100", (784, 4096, 4096, 10), 20)
    with pytest.raises(ValueError, match="at most 8 layers, got 9"):
        plan("H100", (784, *[8] * 8, 10), 20)
    with pytest.raises(ValueError, match="less than 2\\^31 numbers"):
        plan("H100", (1 << 22, 512, 10), 1024)


@pytest.mark.parametrize("clusters", [5, 6, 7, 8])
def test_a_network_for_every_kernel(clusters: int) -> None:
    """The tests on a GPU take these, where nobody can say beforehand how many clusters run at once."""
    for kernel in KERNELS:
        for continual in (False, True):
            settings = {"number_bytes": 8 if kernel.samples == 2 else 4, "continual": continual}
            found = plan("H100", kernel.widths, kernel.batch, clusters=clusters, **settings)
            assert (found["team"], found["samples"], found.get("moving_team", kernel.moving_team)) == kernel[:3]


def test_the_plan_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python asks for, of a GPU that is played here."""
    properties = {key: DEVICES["H100"][key] for key in ("multiprocessors", "shared_bytes", "cluster_blocks")}
    monkeypatch.setattr(ops._C, "cuda_device", lambda index: {**properties, "clusters": 7}, raising=False)
    net = cep.mlp(784, 512, 512, 10, feedback="free")
    large = cep.mlp(20, 4096, 4096, 10)
    with FakeTensorMode():
        x, narrow = torch.empty(20, 784, device="cuda:0"), torch.empty(20, 20, device="cuda:0")
        for settings in ({}, {"continual": True}, {"tolerance": True}):
            wanted = {"engine": "teams", **plan("H100", *SMALL, clusters=7, **settings)}
            assert ops.launch_plan(net.circuit(), x, **settings) == wanted
            assert ops.launch_plan(net.circuit(), x, engine="teams", **settings) == wanted
        assert ops.launch_plan(net.circuit(), x, engine="graph") == {"engine": "graph"}
        assert ops.launch_plan(large.circuit(), narrow) == {"engine": "graph"}
        with pytest.raises(ValueError, match="do not fit"):
            ops.launch_plan(large.circuit(), narrow, engine="teams")
        with pytest.raises(ValueError, match="precision 'exact' alone"):
            ops.launch_plan(net.circuit(), x, precision="tf32", engine="teams")
