"""What ``plan`` says a step costs, counted by hand for a tiny network, and which forms of the update it names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

import ceprop_cuda as cep
from ceprop_cuda.training.planning import Cost

# 4 inputs and 3 + 2 units: 12 weights from the input, 6 between the layers, of 4 bytes each. 2 samples, so that a
# product with the weights takes 2 * 2 operations a weight.
SIZES, BATCH = (4, 3, 2), 2
PHASES: dict[str, Any] = {"free_steps": 5, "nudged_steps": 3, "beta": 0.2}
INPUT, INNER = 2 * 2 * 12, 2 * 2 * 6


def ep_costs(net: cep.Network, **settings: Any) -> dict[str, Cost]:
    plan = cep.plan(net, cep.EP(net, **PHASES, **settings), BATCH)
    assert plan.forms == plan.other_forms == {}
    return plan.costs


def cep_plan(net: cep.Network, batch: int = BATCH, **settings: Any) -> cep.Plan:
    return cep.plan(net, cep.CEP(net, lr=0.1, **{**PHASES, **settings}), batch)


# --- Counts


def test_costs_of_the_phases() -> None:
    """The input's drive once; at every step a product with each weight between layers, up and down."""
    costs = ep_costs(cep.mlp(*SIZES))
    assert costs["free phase"] == Cost(INPUT + 5 * 2 * INNER, 4 * (12 + 5 * 2 * 6))
    assert costs["nudged phases"] == Cost(3 * 2 * INNER, 4 * (3 * 2 * 6))


def test_costs_of_symmetric_phases() -> None:
    """EP runs two of them, continual EP a third without a nudge between the two."""
    net = cep.mlp(*SIZES)
    assert ep_costs(net, nudging="symmetric")["nudged phases"] == Cost(2 * 3 * 2 * INNER, 4 * (2 * 3 * 2 * 6))
    costs = cep_plan(net, nudging="symmetric").costs
    assert costs["nudged phases"] == Cost(3 * 3 * 2 * INNER, 4 * (3 * 3 * 2 * 6))
    assert ep_costs(net, nudging="random_sign") == ep_costs(net)


def test_costs_of_a_readout() -> None:
    """2 x 3 weights outside the dynamics, which the nudge reads up and down; and none between layers."""
    costs = ep_costs(cep.mlp(*SIZES, readout="softmax"))
    assert costs["free phase"] == Cost(INPUT, 4 * 12)
    assert costs["nudged phases"] == Cost(3 * 2 * INNER, 4 * (3 * 2 * 6))


@pytest.mark.parametrize(
    ("feedback", "shared", "terms", "weights"),
    [
        ("tied", False, 2, 12 + 6),  # d r^T and r d^T
        ("free", False, 1 + 1, 12 + 6 + 6),  # one for W, the other for V
        ("free", True, 2 + 2, 12 + 6 + 6),  # both for each
    ],
)
def test_costs_of_the_contrast(feedback: str, shared: bool, terms: int, weights: int) -> None:
    costs = ep_costs(cep.mlp(*SIZES, feedback=feedback), shared_update=shared)
    assert costs["contrast"] == Cost(INPUT + terms * INNER, 4 * weights)


def test_costs_of_a_summed_contrast() -> None:
    """With free feedback one in each of 3 steps; tied they telescope to the one."""
    free, tied = cep.mlp(*SIZES, feedback="free"), cep.mlp(*SIZES)
    assert ep_costs(free, accumulate=True)["contrast"] == Cost(3 * (INPUT + 2 * INNER), 3 * 4 * (12 + 6 + 6))
    assert ep_costs(tied, accumulate=True)["contrast"] == ep_costs(tied)["contrast"]


def test_costs_of_the_inputs_update() -> None:
    """Literal: a product with the weights in each of 5 + 3 steps, but for the first, which counts as a free step's, and
    an update in each of 3, which reads and writes them. Low rank: x x^T, in each step its product with the changes of 3
    units, and the weights once."""
    plan = cep_plan(cep.mlp(*SIZES), update="low_rank")
    assert plan.costs["input update"] == Cost(2 * 2 * 2 * 4 + 3 * 2 * 2 * 2 * 3 + INPUT, 4 * (2 * 12))
    literal = Cost(7 * INPUT + 3 * INPUT, 4 * (7 * 12 + 3 * 2 * 12))
    assert plan.other_forms["input update, literal"] == literal
    plan = cep_plan(cep.mlp(*SIZES), update="literal")
    assert plan.costs["input update"] == literal
    plan = cep_plan(cep.mlp(*SIZES), update="literal", nudging="symmetric")
    assert plan.costs["input update"] == Cost(13 * INPUT + 6 * INPUT, 4 * (13 * 12 + 6 * 2 * 12))


@pytest.mark.parametrize(
    ("feedback", "shared", "terms", "passes"),
    [("tied", False, 2, 2 + 1), ("free", False, 1 + 1, 2 + 2), ("free", True, 2 + 2, 2 + 2)],
)
def test_costs_of_the_inner_updates(feedback: str, shared: bool, terms: int, passes: int) -> None:
    """Literal: the weights for the way up and the way down are read and written, of tied ones the copy is written.
    Low rank: of each of the 5 units two products of all pairs of samples, two with those; the weights once."""
    net = cep.mlp(*SIZES, feedback=feedback)
    plan = cep_plan(net, shared_update=shared, update="literal")
    assert plan.costs["inner updates"] == Cost(3 * terms * INNER, 4 * (3 * passes * 6))
    other = plan.other_forms.get("inner updates, low_rank")
    low_rank = Cost(3 * 4 * (2 * 2 * 2) * 5 + 2 * INNER, 4 * (2 * 6))
    assert other == (low_rank if feedback == "tied" else None)


def test_totals_and_bytes_of_float64() -> None:
    net = cep.mlp(*SIZES)
    plan = cep_plan(net)
    assert list(plan.costs) == ["free phase", "nudged phases", "input update", "inner updates"]
    assert plan.flops == sum(cost.flops for cost in plan.costs.values())
    double = cep_plan(net.double())
    assert (double.flops, double.bytes) == (plan.flops, 2 * plan.bytes)
    assert list(ep_costs(net)) == ["free phase", "nudged phases", "contrast"]


# --- The forms


def input_crossing(sizes: tuple[int, ...], steps: int) -> float:
    """The batch B for which  K 2 B^2 n_0 + 2 B^2 n_in + 2 B n_in n_0 = (T + 2 K - 1) 2 B n_in n_0."""
    weights = sizes[0] * sizes[1]
    return (PHASES["free_steps"] + 2 * steps - 2) * weights / (steps * sizes[1] + sizes[0])


def inner_crossing(sizes: tuple[int, ...], steps: int) -> float:
    """The batch B for which  K 8 B^2 sum(n) + 4 B sum(n n') = K 4 B sum(n n')."""
    weights = sum(below * above for below, above in pairwise(sizes[1:]))
    return (4 * steps - 4) * weights / (8 * steps * sum(sizes[1:]))


@pytest.mark.parametrize("steps", [2, 3, 15])
@pytest.mark.parametrize("sizes", [(12, 40, 30, 10), (30, 9, 70, 6), (784, 128, 10)], ids=str)
@pytest.mark.parametrize(("connections", "crossing"), [("input", input_crossing), ("inner", inner_crossing)])
def test_the_form_with_fewer_operations_is_named(
    connections: str, crossing: Callable[[tuple[int, ...], int], float], sizes: tuple[int, ...], steps: int
) -> None:
    net = cep.mlp(*sizes)
    below, above = math.ceil(crossing(sizes, steps)) - 1, math.floor(crossing(sizes, steps)) + 1
    assert below >= 1
    for batch, form in ((below, "low_rank"), (above, "literal")):
        plan = cep_plan(net, batch, nudged_steps=steps)
        assert plan.forms[connections] == form
        part = "input update" if connections == "input" else "inner updates"
        (other,) = (cost for name, cost in plan.other_forms.items() if name.startswith(part))
        assert plan.costs[part].flops < other.flops


def test_equal_costs_leave_the_literal_form() -> None:
    plan = cep_plan(cep.mlp(2, 2), 1, free_steps=1, nudged_steps=1)
    assert plan.costs["input update"].flops == plan.other_forms["input update, low_rank"].flops
    assert plan.forms["input"] == "literal"


@pytest.mark.parametrize(
    ("of_net", "of_rule"),
    [
        ({"feedback": "free"}, {}),
        ({"feedback": "free"}, {"shared_update": True}),
        ({"schedule": "asynchronous"}, {}),
        ({}, {"nudging": "symmetric"}),
        ({}, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("update", ["auto", "low_rank"])
def test_the_inner_low_rank_is_taken_only_where_it_is_exact(
    update: str, of_net: dict[str, Any], of_rule: dict[str, Any]
) -> None:
    sizes = (100, 96, 96, 10)
    assert cep_plan(cep.mlp(*sizes), 1, update=update).forms == {"input": "low_rank", "inner": "low_rank"}
    assert cep_plan(cep.mlp(*sizes), 1, nudging="random_sign").forms == {"input": "low_rank", "inner": "low_rank"}
    plan = cep_plan(cep.mlp(*sizes, **of_net), 1, update=update, **of_rule)
    assert plan.forms == {"input": "low_rank", "inner": "literal"}
    assert list(plan.other_forms) == ["input update, literal"]


@pytest.mark.parametrize("form", ["literal", "low_rank"])
@pytest.mark.parametrize("batch", [1, 300])
def test_rules_choose_the_form(form: str, batch: int) -> None:
    plan = cep_plan(cep.mlp(100, 96, 96, 10), batch, update=form)
    assert plan.forms == {"input": form, "inner": form}
    other = "low_rank" if form == "literal" else "literal"
    assert sorted(plan.other_forms) == [f"inner updates, {other}", f"input update, {other}"]


# --- What is printed and expected


def test_a_plan_prints_its_parts_and_forms() -> None:
    net = cep.mlp(100, 96, 96, 10)
    plan = cep_plan(net, 300, update="auto")
    lines = str(plan).splitlines()
    names = [re.split(r"  +", line)[0] for line in lines]
    assert names == [
        "free phase",
        "nudged phases",
        "input update, literal",
        "inner updates, literal",
        "all",
        "not taken: inner updates, low_rank",
        "not taken: input update, low_rank",
        "expected",
    ]
    assert f"{plan.flops / 1e6:.2f} MFLOP" in lines[4]
    assert f"{plan.bytes / 1e6:.2f} MB" in lines[4]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "expected" in str(cep.plan(net, cep.EP(net, **PHASES), 3))
    assert "low_rank" not in str(cep.plan(net, cep.EP(net, **PHASES), 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nudging", ["positive", "symmetric"])
def test_expected_milliseconds(nudging: str, dtype: torch.dtype) -> None:
    net = cep.mlp(100, 96, 96, 10).to(dtype)
    before = [p.detach().clone() for p in net.parameters()]
    for rule in (cep.EP(net, **PHASES, nudging=nudging), cep.CEP(net, **PHASES, lr=0.1, nudging=nudging)):
        expected = cep.plan(net, rule, 20).expected_ms
        assert expected is not None
        assert 0 < expected < math.inf
    assert all(map(torch.equal, net.parameters(), before))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("where", [{"dtype": torch.bfloat16}, {"device": "meta"}])
def test_nothing_is_expected_of_what_the_kernels_cannot_run(where: dict[str, Any]) -> None:
    plan = cep_plan(cep.mlp(*SIZES).to(**where))
    assert plan.expected_ms is None
    assert "expected" not in str(plan)
    assert plan.flops == cep_plan(cep.mlp(*SIZES)).flops


# --- Bad arguments


@pytest.mark.parametrize("rule", [lambda net: cep.BPTT(net, 5, 3), lambda net: None])
def test_other_rules_are_refused(rule: Callable[[cep.Network], Any]) -> None:
    net = cep.mlp(*SIZES)
    with pytest.raises(TypeError, match=r"rule must be an EP or CEP, got (BPTT|NoneType)"):
        cep.plan(net, rule(net), BATCH)


def test_rules_on_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="rule must be one on net, got one on another network"):
        cep.plan(cep.mlp(*SIZES), cep.EP(cep.mlp(*SIZES), **PHASES), BATCH)


@pytest.mark.parametrize("batch", [0, -1, 2.5, True, "2"])
def test_other_batches_are_refused(batch: Any) -> None:
    net = cep.mlp(*SIZES)
    with pytest.raises(ValueError, match=rf"batch must be an int >= 1, got {batch!r}"):
        cep.plan(net, cep.EP(net, **PHASES), batch)


# --- Convolutions


# 2 -> 3 channels at 6 x 6 positions, of which maxima leave 3 x 3; 3 -> 4 at 2 x 2, all of them left; 16 -> 2.
W = (3 * 2 * 4, 4 * 3 * 4, 2 * 16)
UP = [2 * BATCH * w * positions for w, positions in zip(W, (36, 4, 1), strict=True)]


def chain(**settings: Any) -> cep.Network:
    return cep.convnet((2, 7, 7), (3, 4), 2, 0, "mi", (2,), **settings)


def test_costs_of_convolutions() -> None:
    costs, step, weights = ep_costs(chain()), 2 * (UP[1] + UP[2]), 4 * (W[1] + W[2])
    assert costs["free phase"] == Cost(UP[0] + 5 * step, 4 * W[0] + 5 * 2 * weights)
    assert costs["nudged phases"] == Cost(3 * step, 3 * 2 * weights)
    assert costs["contrast"] == Cost(UP[0] + step, 4 * W[0] + weights)
    plan = cep_plan(chain())
    assert plan.forms == {"input": "literal", "inner": "literal"} and plan.other_forms == {}
    assert plan.costs["input update"] == Cost(3 * 2 * UP[0], 3 * 3 * 4 * W[0])
    assert plan.costs["inner updates"] == Cost(3 * step, 3 * 4 * weights)
    assert plan.expected_ms is not None and plan.expected_ms > 0


@pytest.mark.parametrize(
    ("feedback", "shared", "continual", "schedule", "extra", "contrasts"),
    [
        ("tied", False, False, "synchronous", 0, 2 + 2),  # two terms, the maxima of two states
        ("tied", False, True, "synchronous", 0, 2 + 1),  # a step has picked those of one
        ("tied", False, False, "asynchronous", 1, 2 + 2),  # picked anew from what has moved
        ("free", False, False, "synchronous", 1, 3 + 3),  # by W once, by V of both states; V has maxima of its own
        ("free", True, True, "synchronous", 1, 4 + 4),
    ],
)
def test_costs_of_maxima(
    feedback: str, shared: bool, continual: bool, schedule: str, extra: int, contrasts: int
) -> None:
    """Of an inner convolution: 1 -> 2 channels by 5 x 5 weights, 4 x 4 positions, 2 x 2 places left; then 8 -> 2."""
    net = cep.convnet((1, 8, 8), (1, 2), (1, 5), 0, "im", (2,), feedback=feedback, schedule=schedule)
    up, dense = 2 * BATCH * 50 * 16, 2 * BATCH * 16
    costs = cep_plan(net, shared_update=shared).costs if continual else ep_costs(net, shared_update=shared)
    assert costs["nudged phases"].flops == 3 * (up * (1 + 1 / 4 + extra) + 2 * dense)
    if continual:
        assert costs["inner updates"].flops == 3 * (contrasts * up + 2 * dense)
    else:
        assert costs["contrast"].flops == 2 * BATCH * 64 + contrasts * up + 2 * dense


def test_costs_of_a_readout_over_a_map() -> None:
    costs = ep_costs(chain(readout="softmax"))
    assert costs["free phase"] == Cost(UP[0] + 5 * 2 * UP[1], 4 * (W[0] + 5 * 2 * W[1]))
    assert costs["nudged phases"] == Cost(3 * 2 * (UP[1] + UP[2]), 4 * 3 * 2 * (W[1] + W[2]))
