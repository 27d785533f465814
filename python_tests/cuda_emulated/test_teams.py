"""Teams of blocks without a GPU: their unchanged source under cuda_emulation, against the reference."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from agreement import assert_agreement
from emulated_calls import call_every_op_on
from emulated_device import Refused
from emulated_teams import (
    CALLS,
    GRIDS,
    NETWORKS,
    SMALL,
    SOME_TEAMS,
    TEAMS,
    THEN_GRIDS,
    Device,
    call_every_op,
    calls_of,
    devices,
    team_runs,
)
from golden_steps import assert_step_is_golden
from large_logits import draws as draws_of_large_logits
from last_places import BOUNDS, assert_activation_is_right, largest_error
from not_finite_numbers import assert_ops_store_nothing
from problems import GOLDEN_NAMES, load_golden, random_problem, relative_error
from settling import FAMILIES, LIMIT, SIZES, TOLERANCE, assert_tolerances_are_exact
from settling import name_of as name_of_settings
from tied_copies import assert_both_copies_stay_the_same
from torch import Tensor
from variants import TOLERANCES, build, copy_of, name_of

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Nudge

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return devices(tmp_path_factory.mktemp("teams"))


# --- The same as the reference


@pytest.mark.parametrize("number", range(len(NETWORKS)), ids=lambda number: name_of(NETWORKS[number]))
@pytest.mark.parametrize("kind", ["rests", "grid"])
def test_agreement(device: Device, number: int, kind: str) -> None:
    variant, dtype = NETWORKS[number], list(TOLERANCES)[number % 2]
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 300  # see test_kernels.check
    draws = [build(variant, dtype, seed) for seed in range(3 if few else 1)]
    teams = list(GRIDS) if kind == "grid" else [team for team in TEAMS if team not in GRIDS]
    assert_agreement(partial(team_runs), draws, module=device(teams[number % len(teams)], seed=number))


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_cases(device: Device, name: str, team: str) -> None:
    if "gate" in (settings := load_golden(name).settings) and "lr" not in settings:
        pytest.skip("teams have no gate of EP between the ends of its phases")
    assert_step_is_golden(name, device(team))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(device: Device, activation: str, dtype: torch.dtype) -> None:
    """With reciprocals that are one unit in the last place off, or none, as the emulation has them."""
    emulated = device("block", shared_bytes=64 << 20)  # for 20,000 units
    assert_activation_is_right(emulated, activation, dtype)
    if activation in BOUNDS:
        assert largest_error(emulated, activation, dtype) < BOUNDS[activation]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("team", SOME_TEAMS)
def test_softmax_of_large_logits(device: Device, team: str, dtype: torch.dtype) -> None:
    assert_agreement(partial(team_runs), draws_of_large_logits(dtype, readout=False)[1], module=device(team))


@pytest.mark.parametrize("team", SOME_TEAMS)
@pytest.mark.parametrize("network", ["tied", "free", "energy"])
def test_a_step_that_is_not_finite_stores_nothing(device: Device, network: str, team: str) -> None:
    assert_ops_store_nothing(device(team), network)


@pytest.mark.parametrize("team", (*SOME_TEAMS, *THEN_GRIDS))
def test_gradients_of_steps_that_are_not_finite_are_zeros(device: Device, team: str) -> None:
    """Those that EP adds up."""
    problem, nudge = build({**SMALL, "feedback": "free"}, torch.float32)
    problem.x[-1, -1] = float("nan")
    steps = {"free_steps": 3, "nudged_steps": 2}
    ran = device(team).ep_step(problem.circuit, problem.x, nudge, **steps, accumulate=True)
    assert all(not gradient.any() for gradient in ran.gradients.parameters())
    assert ran.steps.tolist() == [-1, -1]


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("team", SOME_TEAMS)
def test_both_copies_of_tied_weights_stay_the_same(device: Device, team: str, schedule: str) -> None:
    assert_both_copies_stay_the_same(device(team), schedule)


# --- Phases that end early


@pytest.mark.parametrize("family", FAMILIES, ids=name_of_settings)
def test_phases_end_where_those_of_the_reference_do(device: Device, family: dict[str, Any]) -> None:
    circuit, x, y = random_problem(SIZES, 23, **family)
    nudge, seen = Nudge(y, 0.4), set()
    emulated = device("grid of 3")
    for tolerance, of_phase in ((1e-2, nudge), (1e-4, None), (1e-6, nudge)):
        wanted, found = (m.relax(circuit, x, LIMIT, None, of_phase, tolerance) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.states, wanted.states, strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
        seen.add(wanted.steps.item())
    assert len(seen) > 1
    phases: dict[str, Any] = {"free_steps": LIMIT, "nudged_steps": LIMIT, "tolerance": TOLERANCE}
    for symmetric in (False, True):
        settings = {**phases, "lr": [0.05, 0.02, 0.01], "weight_decay": 0.01, "symmetric": symmetric}
        wanted, found = (m.cep_step(copy_of(circuit), x, nudge, **settings) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.circuit.parameters(), wanted.circuit.parameters(), strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
    for accumulate in (False, True):
        settings = {**phases, "symmetric": True, "accumulate": accumulate}
        wanted, found = (m.ep_step(circuit, x, nudge, **settings) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"] / nudge.beta


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tolerances_are_exact(device: Device, dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(device("grid of 3"), dtype)


def test_a_tolerance_of_zero_changes_nothing_but_the_time(device: Device) -> None:
    circuit, x, _ = random_problem(SIZES, 7, schedule="asynchronous")
    found = device("grid of 3").relax(circuit, x, LIMIT, tolerance=0)
    assert found.steps.item() < LIMIT
    assert all(map(torch.equal, found.states, device("grid of 3").relax(circuit, x, LIMIT).states))


def test_states_that_are_not_finite_never_settle(device: Device) -> None:
    circuit, x, _ = random_problem(SIZES, 7, activation="linear")
    emulated = device("grid of 3")
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    x[-1, -1] = float("nan")
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


# --- The same bits, whoever holds the units and whatever the order


@pytest.mark.parametrize("what", CALLS)
def test_the_same_bits_by_every_team(device: Device, what: str) -> None:
    teams = [team for team in TEAMS if what in calls_of(team)]
    first, *others = (call_every_op(device(team, seed=seed), what) for team in teams for seed in (0, 1, 11))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("team", SOME_TEAMS)
def test_little_shared_memory_takes_more_rounds(device: Device, team: str) -> None:
    problem, nudge = build({**SMALL, "shape": ((20, 133, 160, 7), 70)}, torch.float32)

    def states(shared_bytes: int) -> list[Tensor]:
        return device(team, shared_bytes=shared_bytes).relax(problem.circuit, problem.x, 5, None, nudge).states

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


# --- Class indices


@pytest.mark.parametrize("team", SOME_TEAMS)
@pytest.mark.parametrize("what", ["tied", "cross-entropy"])
def test_class_indices_are_one_hot_targets(device: Device, what: str, team: str) -> None:
    of_network, of_calls = CALLS[what]
    problem, nudge = build({**SMALL, **of_network}, torch.float32)
    by_index = replace(nudge, target=nudge.target.argmax(1))
    pairs = zip(*(call_every_op_on(device(team), problem, of, of_calls) for of in (nudge, by_index)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("label", [-1, 7])
def test_a_class_index_out_of_range_ends_in_an_assertion(device: Device, label: int) -> None:
    problem, nudge = build(SMALL, torch.float32)
    labels = nudge.target.argmax(1)
    labels[-1] = label
    with pytest.raises(Refused, match=r"Assertion .*labels"):
        device("block").relax(problem.circuit, problem.x, 2, None, replace(nudge, target=labels))


# --- What teams do not run


def test_calls_that_teams_refuse(device: Device) -> None:
    problem, nudge = build({**SMALL, "feedback": "free"}, torch.float32)
    with pytest.raises(Refused, match="no gate of EP between the ends of its phases"):
        device("block").ep_step(problem.circuit, problem.x, nudge, free_steps=3, nudged_steps=2, gate="unit")


def test_networks_that_teams_refuse(device: Device) -> None:
    readout, _ = build({**SMALL, "loss": "cross_entropy", "at": "drive", "readout": True}, torch.float32)
    with pytest.raises(Refused, match="no readout"):
        device("block").relax(readout.circuit, readout.x, 3)
