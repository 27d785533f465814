"""The engine for networks of any shape on the CPU, PyTorch's operators around our kernels: against independent code,
against the reference, and against the fused kernels where they run too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import agreement
import pytest
import torch
from agreement import assert_agreement
from convolution_variants import build_chain, chain_variants, name_of_chain
from convolution_variants import build_ties as ties_of_chains
from golden_steps import GOLDEN_CHAINS, assert_chain_is_golden
from graph_problems import GOLDEN_GRAPHS, batch_for, load_golden_graph, one_hot, small_graph
from kernel_runs import all_runs, gated_runs
from large_logits import assert_softmax_is_right
from not_finite_numbers import NETWORKS, assert_not_finite_inputs_stay_visible, assert_ops_store_nothing
from problems import relative_error
from random_graphs import GRAPH_ENGINE, build_graph, graph_variants, name_of_graph
from settling import assert_tolerances_are_exact
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of, name_of

from ceprop_cuda import ops
from ceprop_cuda.spec import connections, reference
from ceprop_cuda.spec.dynamics import Nudge

GRAPHS = graph_variants()
CHAINS = chain_variants()
GATED = [variant for variant in GRAPHS if variant["feedback"] == "free"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def ties_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's convolutions round equal patches by their place, here and in the reference alike, and so decide which
    of equal maxima counts. Energy dynamics begin with maps of equal numbers."""
    monkeypatch.setattr(agreement, "unpooled_at_the_first", connections._unpooled)


# --- Values


@pytest.mark.parametrize("name", GOLDEN_GRAPHS)
def test_golden(name: str) -> None:
    config, arrays, y, net = load_golden_graph(name)
    nudge = Nudge(one_hot(y, net.classes), config["beta"], config["nudge_at"], config["loss"])
    phases = {"free_steps": config["T"], "nudged_steps": config["K"], "symmetric": config["symmetric"]}
    with torch.no_grad():
        circuit = net.circuit()
        if config["rule"] == "cep":
            ran: Any = ops.cep_step(circuit, arrays["x"], nudge, **phases, lr=config["lr"])
        else:
            ran = ops.ep_step(circuit, arrays["x"], nudge, **phases)
    names = ["free", "nudged", "nudged_minus"][: 2 + config["symmetric"]]
    for phase, states in zip(names, [ran.free_states, *ran.nudged_states], strict=True):
        for layer, s in zip(net.layers, states, strict=True):
            assert relative_error(s, arrays[f"{phase}_{layer}"]) < 1e-9
    found = ran.circuit if config["rule"] == "cep" else ran.gradients
    for kind, parameters in (("weight", found.weights), ("bias", found.biases)):
        for place, p in enumerate(parameters):
            if p is None:
                continue
            if config["rule"] == "cep":
                before = arrays[f"{kind}{place}"]
                assert relative_error(p - before, arrays[f"{kind}{place}_after"] - before) < 1e-9
            else:
                assert relative_error(p, arrays[f"{kind}{place}_grad"]) < 1e-9


@pytest.mark.parametrize("number", range(len(GRAPHS)), ids=lambda i: name_of_graph(GRAPHS[i]))
def test_agreement(number: int) -> None:
    assert_agreement(partial(all_runs, GRAPHS[number]), [build_graph(GRAPHS[number], torch.float64)])


@pytest.mark.parametrize("number", range(0, len(GRAPHS), 3), ids=lambda i: name_of_graph(GRAPHS[i]))
def test_agreement_in_float32(number: int) -> None:
    draws = [build_graph(GRAPHS[number], torch.float32, seed) for seed in range(3)]
    assert_agreement(partial(all_runs, GRAPHS[number]), draws, median)


@pytest.mark.parametrize("number", range(len(GATED)), ids=lambda i: name_of_graph(GATED[i]))
def test_gates(number: int) -> None:
    assert_agreement(partial(gated_runs), [build_graph(GATED[number], torch.float64)])


@pytest.mark.parametrize("number", [i for i, variant in enumerate(CHAINS) if variant["feedback"] == "free"])
def test_gates_of_convolutions(number: int) -> None:
    assert_agreement(partial(gated_runs), [build_chain(CHAINS[number], torch.float64)])


@pytest.mark.parametrize("number", range(0, len(VARIANTS), 3), ids=lambda i: name_of(VARIANTS[i]))
def test_agreement_on_dense_chains(number: int) -> None:
    assert_agreement(partial(all_runs, VARIANTS[number]), [build(VARIANTS[number], torch.float64)], module=GRAPH_ENGINE)


@pytest.mark.parametrize("number", range(0, len(CHAINS), 2), ids=lambda i: name_of_chain(CHAINS[i]))
def test_agreement_on_chains_with_convolutions(number: int) -> None:
    assert_agreement(
        partial(all_runs, CHAINS[number]), [build_chain(CHAINS[number], torch.float64)], module=GRAPH_ENGINE
    )


@pytest.mark.parametrize("number", range(1, len(CHAINS), 2), ids=lambda i: name_of_chain(CHAINS[i]))
def test_agreement_on_chains_with_convolutions_in_float32(number: int) -> None:
    draws = [build_chain(CHAINS[number], torch.float32, seed) for seed in range(5)]
    assert_agreement(partial(all_runs, CHAINS[number]), draws, median, GRAPH_ENGINE)


@pytest.mark.parametrize("name", GOLDEN_CHAINS)
def test_golden_chains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "ep_step", lambda *args, engine, **given: GRAPH_ENGINE.ep_step(*args, **given))
    assert_chain_is_golden(name, "fused")


def test_ties_and_saturated_units() -> None:
    """Equal inputs make equal maxima, of which the first counts."""
    assert_agreement(partial(all_runs, CHAINS[0]), [ties_of_chains(CHAINS[0])], module=GRAPH_ENGINE)


@pytest.mark.parametrize("chain", [False, True])
def test_chains_by_either_engine(chain: bool) -> None:
    problem, nudge = build_chain(CHAINS[0], torch.float64) if chain else build(VARIANTS[0], torch.float64)
    found = [all_runs(CHAINS[0], module, problem.circuit, problem.x, nudge) for module in (ops, GRAPH_ENGINE)]
    for kind, tensors in found[0].items():
        assert all(relative_error(b, a) < 1e-9 for a, b in zip(tensors, found[1][kind], strict=True)), kind


@pytest.mark.parametrize("number", range(0, len(GRAPHS), 4), ids=lambda i: name_of_graph(GRAPHS[i]))
def test_phases_end_where_those_of_the_reference_do(number: int) -> None:
    problem, nudge = build_graph(GRAPHS[number], torch.float64)
    circuit, x, _ = problem
    phases: dict[str, Any] = {"free_steps": 60, "nudged_steps": 60, "symmetric": True, "tolerance": 1e-3}
    found = []
    for module in (ops, reference):
        ep = module.ep_step(circuit, x, nudge, **phases)
        moved = module.cep_step(copy_of(circuit), x, nudge, **phases, lr=[0.01] * len(circuit.weights))
        found.append([ep.steps, moved.steps, *moved.circuit.parameters()])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert all(4 <= s < 60 for s in found[0][0].tolist())
    assert max(map(relative_error, found[0][2:], found[1][2:])) < 1e-9


# --- What it promises besides


@pytest.mark.parametrize("number", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_call_gives_the_same_bits(threads: Callable[[int], None], dtype: torch.dtype, number: int) -> None:
    """For one number of threads. PyTorch's products add up in an order that depends on it: between numbers of threads
    results agree but for rounding."""
    variant = GRAPHS[number]
    runs = []
    for count in (1, 1, 2, 2):
        threads(count)
        problem, nudge = build_graph(variant, dtype)
        runs.append(all_runs(variant, ops, problem.circuit, problem.x, nudge))
    for one, other, exactly in ((0, 1, True), (2, 3, True), (0, 2, False)):
        for kind, tensors in runs[one].items():
            for a, b in zip(tensors, runs[other][kind], strict=True):
                limit = 1e-9 if dtype == torch.float64 else 1e-3
                assert torch.equal(a, b) if exactly else (a - b).norm() <= limit * (b.norm() + 0.1), kind


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_that_is_not_finite_stores_nothing(network: str) -> None:
    assert_ops_store_nothing(GRAPH_ENGINE, network)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
def test_not_finite_inputs_stay_visible(pool: str, bad: float) -> None:
    assert_not_finite_inputs_stay_visible(GRAPH_ENGINE, pool, bad)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("convolution", [False, True], ids=["dense", "convolution"])
@pytest.mark.parametrize("readout", [False, True], ids=["linear outputs", "readout"])
def test_softmax_of_large_logits(readout: bool, convolution: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(GRAPH_ENGINE, dtype, readout, convolution)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("convolutions", [(), (connections.Convolution(),)], ids=["dense", "convolution"])
def test_tolerances_are_exact(convolutions: tuple[connections.Convolution, ...], dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(GRAPH_ENGINE, dtype, convolutions)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_not_finite_inputs_of_a_graph_store_nothing(bad: float) -> None:
    net = small_graph("maps", feedback="free", activation="tanh").float()
    x, y = batch_for(net)
    x = x.float()
    x[1, 0, 2, 3] = bad
    nudge = Nudge(one_hot(y, 4).float(), 0.3)
    phases: dict[str, Any] = {"free_steps": 4, "nudged_steps": 3, "symmetric": True}
    before = copy.deepcopy(net)
    with torch.no_grad():
        for gate in (None, "unit", "connection"):
            ep = ops.ep_step(net.circuit(), x, nudge, **phases, gate=gate)
            moved = ops.cep_step(net.circuit(), x, nudge, **phases, gate=gate, lr=[0.1] * len(net.weights))
            assert (ep.steps.tolist(), moved.steps.tolist()) == ([-1] * 3, [-1] * 4)
            assert not any(gradient.any() for gradient in ep.gradients.parameters())
    assert all(map(torch.equal, net.parameters(), before.parameters()))
    states = ops.relax(net.circuit(), x, 3).states
    assert all(s[0].isfinite().all() for s in states)


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize(("settings", "by_one"), [({}, 1), ({"tolerance": 0.0}, 2)], ids=["at once", "tolerance"])
def test_ep_nudges_both_ways_at_once(feedback: str, settings: dict[str, Any], by_one: int) -> None:
    """Of dense layers, a step of both nudged phases asks PyTorch for no more products than one of a single phase."""
    dense = next(variant for variant in GRAPHS if not variant["maps"] and variant["feedback"] == feedback)
    problem, nudge = build_graph(dense, torch.float64)

    def products(symmetric: bool, nudged_steps: int) -> int:
        with torch.profiler.profile() as found:
            phases = {"free_steps": 2, "nudged_steps": nudged_steps, "symmetric": symmetric}
            ops.ep_step(problem.circuit, problem.x, nudge, **phases, **settings)
        return sum(e.count for e in found.key_averages() if e.key == "aten::mm")

    one, both = (products(symmetric, 3) - products(symmetric, 2) for symmetric in (False, True))
    assert both == by_one * one > 0


def test_autocast_changes_nothing() -> None:
    problem, nudge = build_graph(GRAPHS[1], torch.float32)
    phases: dict[str, Any] = {"free_steps": 5, "nudged_steps": 3}
    wanted = ops.ep_step(problem.circuit, problem.x, nudge, **phases)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.ep_step(problem.circuit, problem.x, nudge, **phases)
    assert all(map(torch.equal, found.gradients.parameters(), wanted.gradients.parameters()))


def test_any_strides() -> None:
    variant = next(v for v in GRAPHS if v["maps"] and v["feedback"] == "free")
    problem, nudge = build_graph(variant, torch.float64)
    circuit = copy_of(problem.circuit)

    def strided(t: Tensor) -> Tensor:
        return torch.stack([t, t.new_full(t.shape, float("nan"))], -1)[..., 0]

    views = replace(
        copy_of(circuit),
        weights=[strided(w) for w in circuit.weights],
        biases=[None if b is None else strided(b) for b in circuit.biases],
        free_feedback=[strided(v) for v in circuit.free_feedback],
    )
    x = problem.x.contiguous(memory_format=torch.channels_last)
    for found, given in ((views, x), (circuit, problem.x)):
        ops.cep_step(found, given, nudge, free_steps=4, nudged_steps=3, lr=[0.1] * len(circuit.weights))
    assert all(map(torch.equal, views.parameters(), circuit.parameters()))
