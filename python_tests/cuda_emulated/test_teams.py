"""Teams of blocks that own samples, without a GPU: their unchanged source under cuda_emulation, against the reference
and the emulation's checks, and how a device would lay them out."""

from __future__ import annotations

import re
import shutil
from functools import partial
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from emulated_device import Refused
from emulated_teams import BLOCKS, CALLS, NETWORKS, NOT_FINITE, SMALL, Device, call_both_ops, devices, team_runs
from golden_steps import assert_step_is_golden
from known_devices import DEVICES
from large_logits import draws as draws_of_large_logits
from last_places import BOUNDS, assert_activation_is_right, largest_error
from not_finite_numbers import VALUES, case
from problems import GOLDEN_WITHOUT_GATE, load_golden
from project import ROOT
from torch import Tensor
from variants import TOLERANCES, build, name_of

from ceprop_cuda import _C, ops
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Nudge

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FILES = sorted((ROOT / "csrc" / "cuda" / "teams").glob("*.cuh"))


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("teams"))


# --- The same as the reference


@pytest.mark.parametrize("number", range(len(NETWORKS)), ids=lambda number: name_of(NETWORKS[number]))
def test_agreement(device: Device, number: int) -> None:
    variant, dtype = NETWORKS[number], list(TOLERANCES)[number % 2]
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 300  # see test_kernels.check
    draws = [build(variant, dtype, seed) for seed in range(3 if few else 1)]
    assert_agreement(partial(team_runs), draws, module=device(BLOCKS[number % len(BLOCKS)], seed=number))


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", [name for name in GOLDEN_WITHOUT_GATE if "lr" not in load_golden(name).settings])
def test_golden_cases(device: Device, name: str, blocks: int) -> None:
    assert_step_is_golden(name, device(blocks))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(device: Device, activation: str, dtype: torch.dtype) -> None:
    emulated = device(1, shared_bytes=64 << 20)  # for 20,000 units
    assert_activation_is_right(emulated, activation, dtype)
    if activation in BOUNDS:
        assert largest_error(emulated, activation, dtype) < BOUNDS[activation]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_softmax_of_large_logits(device: Device, blocks: int, dtype: torch.dtype) -> None:
    assert_agreement(partial(team_runs), draws_of_large_logits(dtype, readout=False)[1], module=device(blocks))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("network", ["tied", "free", "energy"])
def test_a_step_that_is_not_finite_learns_nothing(device: Device, network: str, blocks: int) -> None:
    at = {1: "drive"}  # where an activation would make a number of an infinite target
    for number in range(2 + len(list(case(network)[0].parameters()))):
        net, x, target = case(network)
        tensor = [x, target, *net.parameters()][number].detach()
        tensor.view(-1)[tensor.numel() // 2] = 1e38 if number == 0 else VALUES[number % 3]
        nudge = Nudge(target, 0.5, *net.nudging_point(at.get(number), None))
        for symmetric in (False, True):
            phases = {"free_steps": 4, "nudged_steps": 2, "symmetric": symmetric}
            with torch.no_grad():
                ran = device(blocks).ep_step(net.circuit(), x, nudge, **phases)
            assert ran.steps.tolist() == [-1] * (2 + symmetric), number
            assert not any(gradient.any() for gradient in ran.gradients.parameters())


# --- The same bits, whoever holds the units and whatever the order


@pytest.mark.parametrize("what", CALLS)
def test_the_same_bits_by_every_team(device: Device, what: str) -> None:
    first, *others = (call_both_ops(device(blocks, seed=seed), what) for blocks in BLOCKS for seed in (0, 1, 11))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("blocks", [1, 3])
def test_little_shared_memory_takes_more_rounds(device: Device, blocks: int) -> None:
    problem, nudge = build({**SMALL, "shape": ((20, 133, 160, 7), 70)}, torch.float32)

    def states(shared_bytes: int) -> list[Tensor]:
        return device(blocks, shared_bytes=shared_bytes).relax(problem.circuit, problem.x, 5, None, nudge).states

    too_little, enough = 0, 4 << 20
    while enough - too_little > 1024:
        middle = (too_little + enough) // 2
        try:
            found = states(middle)
            enough = middle
        except Refused as refused:
            assert "does not fit" in str(refused)
            too_little = middle
    assert all(map(torch.equal, found, states(4 << 20)))


# --- No race, no step beyond memory, and every wait is needed

# Where kernels wait, and what stands there.
WAITS = {
    f"{file.name}:{number}": line.strip()
    for file in FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(r"__sync(threads|warp)\(\)|\bsync\(\)|team_\.(begin|end)\(\)|\bwait\(\w+, g\)", line.split("//")[0])
}
Calls = dict[tuple[int, str], set[str]]


@pytest.fixture(scope="session")
def met(device: Device) -> Calls:
    """The places where the calls of a team wait, that run without a report of a race."""
    found: Calls = {}
    for blocks in (1, 3):
        for what in (*CALLS, NOT_FINITE):
            for seed, dtype in ((0, torch.float32), (10, torch.float64)):
                emulated = device(blocks, name="race", seed=seed)
                call_both_ops(emulated, what, dtype)
                found.setdefault((blocks, what), set()).update(emulated.sites)
    return found


def test_no_race_and_every_wait_is_met(met: Calls) -> None:
    assert set.union(*met.values()) == set(WAITS)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("place", WAITS)
def test_a_missing_wait_is_reported(device: Device, met: Calls, place: str, blocks: int) -> None:
    meeting = [what for what in (*CALLS, NOT_FINITE) if place in met[blocks, what]]
    for what in meeting:
        for seed in range(3):
            try:
                call_both_ops(device(blocks, name="race", skipped_site=place, seed=seed), what)
            except Refused as refused:
                assert re.match(r"data race on |a mailbox |map_shared_rank: |no mailbox ", str(refused))
                return
    assert not meeting, WAITS[place]


@pytest.mark.parametrize("blocks", [1, 3, 16])
@pytest.mark.parametrize("what", CALLS)
def test_no_step_beyond_memory(device: Device, what: str, blocks: int) -> None:
    dtype = (torch.float32, torch.float64)[list(CALLS).index(what) % 2]
    call_both_ops(device(blocks, name="asan"), what, dtype)


# --- What teams do not run


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tolerance": 1e-3}, "no tolerance"), ({"accumulate": True}, "ends of phases"), ({"gate": "unit"}, "no gate")],
)
def test_calls_that_teams_refuse(device: Device, settings: dict[str, Any], message: str) -> None:
    problem, nudge = build({**SMALL, "feedback": "free"}, torch.float32)
    with pytest.raises(Refused, match=message):
        device(1).ep_step(problem.circuit, problem.x, nudge, free_steps=3, nudged_steps=2, **settings)


def test_networks_that_teams_refuse(device: Device) -> None:
    readout, nudge = build({**SMALL, "loss": "cross_entropy", "at": "drive", "readout": True}, torch.float32)
    with pytest.raises(Refused, match="no readout"):
        device(1).relax(readout.circuit, readout.x, 3)
    problem, nudge = build(SMALL, torch.float32)
    with pytest.raises(Refused, match="no continual EP"):
        device(1).cep_step(problem.circuit, problem.x, nudge, free_steps=3, nudged_steps=2, lr=[0.1] * 3)


# --- How a device would lay them out


def plan(name: str, widths: tuple[int, ...], batch: int, **settings: Any) -> dict[str, Any]:
    properties = {key: value for key, value in DEVICES[name].items() if key != "compute_capability"}
    clusters = properties["multiprocessors"] // properties["cluster_blocks"] if properties["cluster_blocks"] else 0
    given = {"asynchronous": False, "number_bytes": 4, "clusters": clusters, **settings}
    return _C.team_plan(**properties, widths=widths, batch=batch, **given)


def padded_weights(widths: tuple[int, ...]) -> int:
    """What octets of units have between layers, where sources are padded to 32."""

    def padded(width: int, step: int) -> int:
        return -(-width // step) * step

    pairs = [*pairwise(widths[1:])]
    return sum(padded(above, 8) * padded(below, 32) + padded(below, 8) * padded(above, 32) for below, above in pairs)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("number_bytes", [4, 8])
@pytest.mark.parametrize("batch", [1, 20, 64, 257])
@pytest.mark.parametrize("widths", [(784, 512, 10), (784, 64, 10), (5, 3), (9, 100, 33, 31, 7)])
def test_a_plan_takes_all_samples_and_no_more_than_there_is(
    name: str, widths: tuple[int, ...], batch: int, number_bytes: int
) -> None:
    try:
        found = plan(name, widths, batch, number_bytes=number_bytes)
    except ValueError as error:
        assert "do not fit" in str(error)
        assert padded_weights(widths) * number_bytes > 0.75 * DEVICES[name]["shared_bytes"]
        return
    assert found["shared_bytes"] <= DEVICES[name]["shared_bytes"]
    assert found["blocks"] in (1, DEVICES[name]["cluster_blocks"])
    assert found["blocks"] * found["teams"] <= DEVICES[name]["multiprocessors"]
    at_a_time = found["teams"] * found["groups"] * found["samples"]
    assert (found["rounds"] - 1) * at_a_time < batch <= found["rounds"] * at_a_time
    assert found["step_us"] > 0


def test_plans_for_an_h100() -> None:
    found = plan("H100", (784, 512, 512, 10), 20, clusters=7)
    layers = found.pop("layers_of_octets")
    assert [*chain.from_iterable(layers)] == [0] * 64 + [1] * 64 + [2] * 2
    assert {len(block) for block in layers} == {8, 9}
    assert found.pop("sources_of_layers") == [(4, 0), (4, 1), (4, 0)]  # 10 outputs are a tail
    assert found.pop("step_us") > 0
    assert found == {
        "exchange": "team",
        "blocks": 16,
        "teams": 7,
        "warps": 9,
        "samples": 3,
        "groups": 1,
        "rounds": 1,
        "shared_bytes": 178_432,
    }
    with pytest.raises(ValueError, match="the weights between layers do not fit into the shared memory of a team"):
        plan("H100", (784, 2048, 2048, 10), 20)
    with pytest.raises(ValueError, match="at most 8 layers, got 9"):
        plan("H100", (784, *[8] * 8, 10), 20)
    with pytest.raises(ValueError, match="less than 2\\^31 numbers"):
        plan("H100", (1 << 22, 512, 10), 1024)


def test_the_plan_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python asks for, of a GPU that is played here."""
    monkeypatch.setattr(ops._C, "cuda_device", lambda index: DEVICES["H100"], raising=False)
    monkeypatch.setattr(ops._C, "cuda_clusters", lambda index: 7, raising=False)
    problem, _ = build({**SMALL, "shape": ((784, 512, 512, 10), 20)}, torch.float32)
    found = ops.launch_plan(problem.circuit, problem.x, engine="teams")
    assert found == plan("H100", (784, 512, 512, 10), 20, clusters=7)
    large, _ = build({**SMALL, "shape": ((20, 2048, 2048, 10), 20)}, torch.float32)
    with pytest.raises(ValueError, match="the weights between layers do not fit"):
        ops.launch_plan(large.circuit, large.x, engine="teams")
