"""What the ops promise of networks that are no chains, whatever they are given: nothing crashes, and what cannot be is
refused in words that name the connection."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from graph_problems import batch_for, small_graph
from op_arguments import OPS, arguments_of, torch_ops
from problems import random_problem
from random_graphs import build_graph, graph_variants
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Nudge

# With free feedback: layers of maps and dense ones; of a chain's, "turns" among the settings.
VARIANTS = [v for v in graph_variants() if v["feedback"] == "free" and v["maps"]]


def of_skips(op: str, **changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """0 and 1 hidden layers, 2 the output; connections input -> 0 -> 1 -> 2, input -> 1, 0 -> 2."""
    return arguments_of(op, *skips(), **changes)


def skips() -> tuple[Any, Nudge]:
    net = small_graph("skips")
    x, _ = batch_for(net)
    target = torch.rand(3, 4, dtype=torch.float64)
    return (with_detached(net), x, target), Nudge(target, 0.3)


def with_detached(net: cep.Network) -> Any:
    for p in net.parameters():
        p.requires_grad_(False)
    return net.circuit()


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=lambda v: v["schedule"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, variant: dict[str, Any]) -> None:
    given, settings = arguments_of(op, *build_graph(variant, torch.float64))
    torch.library.opcheck(getattr(torch_ops, op).default, given, settings)


@pytest.mark.parametrize("op", ["relax", "ep_step"])
def test_gradients_are_refused_not_lost(op: str) -> None:
    given, settings = of_skips(op)
    given[1] = [w.requires_grad_() for w in given[1]]
    result = getattr(torch_ops, op)(*given, **settings)
    with pytest.raises(RuntimeError, match="not differentiable"):
        result[0][0].sum().backward()


def test_graphs_compile() -> None:
    for name in ("skips", "maps"):
        net = small_graph(name, free_steps=3)
        x, _ = batch_for(net)
        assert torch.equal(torch.compile(net, fullgraph=True)(x), net(x))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joined": [-1, 0]}, "joined must hold 10 numbers, two per connection but a readout's, or none, got 2"),
        ({"joined": [-2, 0, 0, 1, 1, 2, -1, 1, 0, 2]}, r"joined\[0\] must lie in -1 .. 4, where -1 is the input"),
        ({"joined": [-1, 0, 0, 1, 1, 5, -1, 1, 0, 2]}, r"joined\[5\] must lie in 0 .. 4, got 5"),
        ({"joined": [-1, 0, 0, 1, 1, 2**40, -1, 1, 0, 2]}, r"joined\[5\] must lie in 0 .. 4, got 1099511627776"),
        ({"joined": [-1, -1, 0, 1, 1, 2, -1, 1, 0, 2]}, r"joined\[1\] must lie in 0 .. 4, got -1"),
        (
            {"joined": [-1, 0, 1, 1, 1, 2, -1, 1, 0, 2]},
            r"weights\[1\] must join two layers, but joined says layer 1",
        ),
        ({"joined": [-1, 0, 0, 1, 4, 2, -1, 1, 0, 2]}, r"weights\[2\] \(layer 4 -> layer 2\) starts at a layer"),
        (
            {"joined": [-1, 0, 0, 3, 3, 2, -1, 3, 0, 2]},
            "joined must have a connection that ends at layer 1",
        ),
        ({"joined": [-1, 0, 0, 1, 0, 2, -1, 1, 0, 2]}, "joined must leave one layer at which .* got layers 1 and 2"),
        ({"joined": [-1, 0, 0, 1, 1, 0, -1, 1, 0, 2]}, r"weights\[.\] \(layer . -> layer .\) is part of a ring"),
        (
            {"joined": [-1, 0, 0, 1, 1, 2, -1, 2, 0, 1]},
            r"weights\[4\] .* gives states of shape \(4,\), but weights\[1\]",
        ),
        ({"joined": [0, 1, -1, 0, 1, 2, -1, 1, 0, 2]}, r"weights\[1\] must be \(5, 7\), got \(5, 6\)"),
        ({"turns": [0, 1]}, "turns must hold 3 numbers, one per layer, or none, got 2"),
        ({"turns": [0, 1, 3]}, r"turns\[2\] must lie in 0 .. 2, got 3"),
        ({"turns": [0, -1, 1]}, r"turns\[1\] must lie in 0 .. 2, got -1"),
        ({"pools": "dddddd"}, "pools must hold at most 5 letters, one per connection but a readout's, got 6"),
        (
            {"pools": "m", "strides": [1, 1], "paddings": [0, 0], "windows": [1, 1]},
            r"x must be \(B, channels, height, width\), each >= 1, got \(3, 7\)",
        ),
        (
            {"pools": "dm", "strides": [1] * 4, "paddings": [0] * 4, "windows": [1] * 4},
            r"weights\[1\] \(layer 0 -> layer 1\) is a convolution, but layer 0 is dense",
        ),
        (
            {"pools": "ddm", "strides": [1] * 6, "paddings": [0] * 6, "windows": [1] * 6},
            r"weights\[2\] \(layer 1 -> layer 2\) ends at the output, so it must be dense",
        ),
        (
            {"engine": "fused"},
            "engine must not be 'fused': the fused kernels take chains of layers",
        ),
        ({"engine": "teams"}, "engine must not be 'teams' on the CPU"),
        ({"engine": "grid"}, "engine must be one of 'auto', 'fused', 'teams', 'graph', got 'grid'"),
        ({"readout": True}, "joined must hold 8 numbers, two per connection but a readout's, or none, got 10"),
    ],
)
def test_refused(op: str, changes: dict[str, Any], message: str) -> None:
    given, settings = of_skips(op, **changes)
    flat = [t for a in given for t in (a if isinstance(a, list) else [a])]
    before = [t.clone() for t in flat]
    with pytest.raises(ValueError, match=message):
        getattr(torch_ops, op)(*given, **settings)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(flat, before, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_tensors_of_the_wrong_connection_are_refused(op: str) -> None:
    given, settings = arguments_of(op, *build_graph(VARIANTS[0], torch.float64))
    count = len(given[3])
    assert count > 1
    for index, name, message in (
        (1, "weights", r"weights\[|all connections that end at a layer must give one shape"),
        (2, "biases", r"biases\[\d\] must be"),
        (3, "feedback_weights", r"feedback_weights\[\d\] must be"),
    ):
        changed = list(given)
        changed[index] = [torch.rand(7, 7, 1, 1, 1, dtype=torch.float64), *given[index][1:]]
        with pytest.raises(ValueError, match=message):
            getattr(torch_ops, op)(*changed, **settings)
        changed[index] = given[index][1:]
        with pytest.raises(ValueError, match=rf"{name if index > 1 else 'joined|biases'}.* must hold"):
            getattr(torch_ops, op)(*changed, **settings)


@pytest.mark.parametrize("seed", range(4))
def test_no_nonsense_crashes(seed: int) -> None:
    """Random lists, near to those that fit: a call is refused by a ValueError, or computes."""
    draw = random.Random(seed)
    computed = 0
    for _ in range(150):
        variant = draw.choice(VARIANTS)
        problem, nudge = build_graph(variant, torch.float64)
        op = draw.choice(OPS)
        given, settings = arguments_of(op, problem, nudge)
        for name in draw.sample(["joined", "turns", "strides", "paddings", "windows", "pools"], draw.randint(0, 2)):
            if name == "pools":
                letters = list(settings["pools"])
                letters[draw.randrange(len(letters))] = draw.choice("maidx")
                settings["pools"] = "".join(letters)
                continue
            numbers = list(settings.get(name, [])) or [draw.randint(0, 2) for _ in range(problem.circuit.layers)]
            numbers[draw.randrange(len(numbers))] = draw.choice([-1, 0, 1, 2, 3, 4, 7, 40, 2**15, -(2**62)])
            settings[name] = numbers
        try:
            getattr(torch_ops, op)(*given, **settings)
            computed += 1
        except ValueError:
            pass
    assert 20 < computed < 150


def test_a_readout_may_follow_any_graph() -> None:
    variant = next(v for v in graph_variants() if v.get("readout") and v["maps"])
    problem, nudge = build_graph(variant, torch.float64)
    phases: dict[str, Any] = {"free_steps": 5, "nudged_steps": 3}
    found, wanted = (m.ep_step(problem.circuit, problem.x, nudge, **phases) for m in (ops, reference))
    assert torch.allclose(found.output, wanted.output, rtol=1e-9)


def test_chains_said_as_graphs_are_chains() -> None:
    """Bitwise what the fused kernels compute, which run them."""
    circuit, x, target = random_problem()
    nudge = Nudge(target, 0.3)
    given, settings = arguments_of("ep_step", (circuit, x, target), nudge)
    joined = [layer for c in circuit.connections for layer in (c.below, c.above)]
    plain: list[Any] = list(torch_ops.ep_step(*given, **settings, engine="fused"))
    for changes in ({"joined": joined}, {"joined": joined, "turns": [0] * circuit.layers}):
        for a, b in zip(torch_ops.ep_step(*given, **settings | changes, engine="fused"), plain, strict=True):
            assert all(map(torch.equal, a, b))


def test_an_engine_is_taken_as_asked() -> None:
    circuit, x, target = random_problem()
    nudge, phases = Nudge(target, 0.3), {"free_steps": 5, "nudged_steps": 3}
    by: dict[str, list[Tensor]] = {
        engine: ops.ep_step(circuit, x, nudge, **phases, engine=engine).gradients.parameters()
        for engine in ("auto", "fused", "graph")
    }
    assert all(map(torch.equal, by["auto"], by["fused"]))
    assert not all(map(torch.equal, by["auto"], by["graph"]))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(by["auto"], by["graph"], strict=True))
