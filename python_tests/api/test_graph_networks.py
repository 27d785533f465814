"""cep.graph and what a Network of layers joined in any way can do: the chain among them, training, runs, changes."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_problems import batch_for, random_states, skip_connections
from graph_problems import small_graph as graph
from problems import relative_error
from torch import Tensor, nn
from training_runs import fit, without_seconds

import ceprop_cuda as cep
from ceprop_cuda import backends
from ceprop_cuda.data import load
from ceprop_cuda.theorem import compare

DENSE = [("input", "h1", nn.Linear(7, 6)), ("h1", "h2", nn.Linear(6, 5)), ("h2", "out", nn.Linear(5, 4))]
MAPS = [
    ("input", "h1", nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2))),
    ("h1", "h2", nn.Conv2d(3, 4, 3)),
    ("h2", "out", nn.Linear(4, 4)),
]
MODELS = {
    "dense": (DENSE, (7,), nn.Sequential(*(module for _, _, module in DENSE))),
    "maps": (MAPS, (2, 6, 6), nn.Sequential(*MAPS[0][2], MAPS[1][2], nn.Flatten(), MAPS[2][2])),
}


# --- A chain given as a graph


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "asynchronous"}, {"dynamics": "energy"}, {"feedback": "free"}], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_a_chain_given_as_a_graph_is_the_chain(name: str, settings: dict[str, Any], backend: str) -> None:
    """Bitwise: states, gradients, continual updates."""
    connections, shape, model = MODELS[name]
    joined = cep.graph(copy.deepcopy(connections), input_shape=shape, output="out", **settings).double()
    plain = cep.Network(copy.deepcopy(model), shape, **settings).double()
    x, y = batch_for(plain)
    for p, q in zip(joined.circuit().parameters(), plain.circuit().parameters(), strict=True):
        p.data.copy_(q)
    assert (joined.layers, plain.layers) == (["h1", "h2", "out"], ["0", "1", "2"])
    outs = [cep.EP(net, 12, 5, 0.2, backend=backend).backward(x, y) for net in (joined, plain)]
    assert all(map(torch.equal, *(out.free_states + out.nudged_states for out in outs)))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(joined.parameters(), plain.parameters(), strict=True))
    for net in (joined, plain):
        cep.CEP(net, 12, 5, 0.2, lr=0.1, backend=backend).step(x, y)
    assert all(map(torch.equal, joined.parameters(), plain.parameters()))


def test_the_order_of_connections_only_names_layers_and_parameters() -> None:
    net = graph("skips")
    x, y = batch_for(net)
    connections = [(*ends, module) for ends, module in zip(net.model.ends, copy.deepcopy(net.model), strict=True)]
    backwards = cep.graph(connections[::-1], input_shape=7, output="out")
    assert backwards.layers == ["h1", "out", "h2"]
    outs = [cep.EP(n, 12, 5, 0.2, nudging="symmetric").backward(x, y) for n in (net, backwards)]
    for name, s in zip(net.layers, outs[0].nudged_states, strict=True):
        assert relative_error(outs[1].nudged_states[backwards.layers.index(name)], s) < 1e-14
    assert outs[1].output is outs[1].free_states[1] or torch.equal(outs[1].output, outs[1].free_states[1])
    for w, other in zip(net.weights, backwards.weights[::-1], strict=True):
        assert relative_error(other.grad, w.grad) < 1e-12


# --- What a Network says of itself


def test_parameters_are_by_connection() -> None:
    net = graph("skips", feedback="free")
    assert [w.shape for w in net.weights] == [(6, 7), (5, 6), (4, 5), (5, 7), (4, 6)]
    assert [b is None for b in net.biases] == [False, False, False, True, True]
    assert [v is None for v in net.feedback] == [True, False, False, True, False]
    assert net.classes == 4
    assert list(net.state_dict()) == [
        *(f"model.{e}.{kind}" for e in range(3) for kind in ("weight", "bias")),
        "model.3.weight",
        "model.4.weight",
        *(f"free_feedback.{index}" for index in range(3)),
    ]
    net.set_angle(0)
    assert net.angles() == pytest.approx([0, 0, 0], abs=1e-5)
    assert all(torch.equal(net.feedback[e], net.weights[e]) for e in (1, 2, 4))


def test_repr_says_what_is_joined() -> None:
    text = repr(graph("skips", turns=[["out", "h1"], ["h2"]]))
    assert "connections=[input -> h1, h1 -> h2, h2 -> out, input -> h2, h1 -> out], output='out'" in text
    assert "turns=[['out', 'h1'], ['h2']]" in text
    assert "turns" not in repr(graph("skips", schedule="asynchronous"))
    assert "connections=" not in repr(cep.mlp(4, 3))


@pytest.mark.parametrize("settings", [{"dynamics": "energy"}, {}], ids=["energy", "prototypical"])
def test_phi_and_energy_are_for_the_dynamics_that_they_drive(settings: dict[str, Any]) -> None:
    for net in (cep.mlp(7, 5, 4, **settings).double(), graph("skips", **settings)):
        x, _ = batch_for(net)
        states = random_states(net, x)
        assert net.phi(x, states).shape == (3,)
        if settings:
            assert net.energy(x, states).shape == (3,)
        else:
            with pytest.raises(ValueError, match="energy needs a network with dynamics='energy', got 'prototypical'"):
                net.energy(x, states)
        with pytest.raises(ValueError, match="states must have the shapes"):
            net.phi(x, states[1:])
    free = graph("skips", feedback="free", **settings)
    with pytest.raises(ValueError, match="phi needs feedback='tied', got a network with free feedback"):
        free.phi(x, states)


def test_copies_and_files_of_a_graph_work_on_their_own() -> None:
    net = graph("maps", turns=[["a", "out"], ["b"], ["c"]])
    x, _ = batch_for(net)
    wanted = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), wanted)
        other.weights[0].data.zero_()
        assert not torch.equal(other(x), wanted)


CHANGES: dict[str, tuple[Callable[[cep.Network], object], str]] = {
    "append": (lambda net: net.model.append(nn.Linear(8, 4)), "model had 13 modules .* now it has 14"),
    "replace": (lambda net: net.model.__setitem__(1, nn.Conv2d(3, 4, 3)), r"connections\[1\] .*'b'\) was replaced"),
    "within": (lambda net: net.model[0].__setitem__(1, nn.AvgPool2d(2)), r"connections\[0\] .*\[1\] was replaced"),
    "setting": (
        lambda net: setattr(net.model[4][0], "stride", (1, 1)),
        r"connections\[4\] .*\[0\] was changed .*stride",
    ),
    "hook": (
        lambda net: net.model[0].register_forward_hook(print),
        r"connections\[0\] \('input' -> 'a'\) has forward h",
    ),
    "hook within": (
        lambda net: net.model[2][0].register_forward_hook(print),
        r"connections\[2\] .*\[0\] has forward h",
    ),
    "model": (lambda net: setattr(net, "model", copy.deepcopy(net.model)), "model was replaced"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen_at_the_next_call(change: str) -> None:
    net = graph("maps")
    (x, y), rule = batch_for(net), cep.CEP(net, 3, 2, 0.5, lr=0.1)
    act, message = CHANGES[change]
    act(net)
    for call in (lambda: net(x), lambda: rule.step(x, y), lambda: net.phi(x, [])):
        with pytest.raises(TypeError, match=message):
            call()


# --- Backends


@pytest.mark.parametrize("name", ["skips", "maps"])
def test_the_kernels_take_graphs(name: str, caplog: pytest.LogCaptureFixture) -> None:
    net = graph(name)
    x, y = batch_for(net)
    backends.say_once.cache_clear()
    caplog.set_level(logging.INFO, "ceprop_cuda")
    for backend in ("auto", "fused"):
        for s, wanted in zip(net.relax(x, 9, backend=backend), net.relax(x, 9, backend="reference"), strict=True):
            assert relative_error(s, wanted) < 1e-13
    assert caplog.messages == ["running the compiled kernels on cpu"]
    nets = [copy.deepcopy(net) for _ in range(2)]
    for one, backend in zip(nets, ("auto", "reference"), strict=True):
        cep.EP(one, 9, 3, 0.2, nudging="symmetric", backend=backend).backward(x, y)
        cep.CEP(one, 9, 3, 0.2, lr=0.1, backend=backend).step(x, y)
    for p, q in zip(*(one.circuit().parameters() for one in nets), strict=True):
        assert relative_error(p, q) < 1e-9
        assert relative_error(p.grad, q.grad) < 1e-9


def test_plan_counts_chains() -> None:
    net = graph("skips")
    with pytest.raises(ValueError, match="plan counts the operations of chains of layers, this network is a graph"):
        cep.plan(net, cep.EP(net, 9, 3, 0.2), 20)


# --- Learning


def test_updates_follow_the_gradients_of_bptt_step_by_step() -> None:
    net = graph("skips", activation="tanh", output_activation="linear", dynamics="energy", clip=False)
    x, y = batch_for(net)
    found = compare(cep.EP(net, 400, 8, 1e-6), x, y)
    assert found.moved < 1e-15
    assert [match.agreement.quantity for match in found.matches] == [
        *(f"s[{name}]" for name in net.layers),
        *(f"W[{e}]" for e in range(5)),
        *(f"b[{e}]" for e in range(3)),
    ]
    for match in found.matches:
        assert relative_error(match.updates, match.descents) < 1e-4, match.agreement
    assert found.angle < 1e-3
    for rule in (cep.EP(net, 60, 8, 0.05), cep.BPTT(net, 60, 8)):
        net.zero_grad()
        rule.backward(x, y)
        gradient = torch.cat([p.grad.flatten() for p in net.circuit().parameters()])
        sums = [m.summed_updates if isinstance(rule, cep.EP) else m.summed_descents for m in found.parameters]
        assert relative_error(gradient, -torch.cat([part.flatten() for part in sums])) < 0.05


def test_frozen_connections_stay_and_rates_are_by_connection() -> None:
    net = graph("skips", feedback="free")
    (x, y), before = batch_for(net), copy.deepcopy(net)
    for p in (net.weights[1], net.biases[1], net.feedback[1]):
        p.requires_grad_(False)
    cep.CEP(net, 20, 5, 0.2, lr=(0.1, 0.1, 0.0, 0.1, 0.1)).step(x, y)
    for kind in ("weights", "biases", "feedback"):
        pairs = zip(getattr(net, kind), getattr(before, kind), strict=True)
        moved = [None if p is None else not torch.equal(p, q) for p, q in pairs]
        expected = [e not in (1, 2) for e in range(5)]
        assert moved == [None if m is None else wanted for m, wanted in zip(moved, expected, strict=True)]
    with pytest.raises(ValueError, match="lr must hold 5 rates"):
        cep.CEP(net, 20, 5, 0.2, lr=(0.1, 0.1))


def test_what_is_not_finite_is_named_by_its_layer() -> None:
    net = graph("skips", activation="relu", output_activation="linear")
    x, y = batch_for(net)
    net.biases[1].data.fill_(1e200)
    with pytest.raises(cep.Diverged, match=r"states of layer h2, .* biases of connection 1 are not finite"):
        cep.EP(net, 5, 2, 0.2).backward(x, y)


def skip_network(**settings: Any) -> cep.Network:
    return cep.graph(
        [
            ("input", "h1", nn.Linear(64, 40)),
            ("h1", "h2", nn.Linear(40, 30)),
            ("input", "h2", nn.Linear(64, 30, bias=False)),
            ("h2", "out", nn.Linear(30, 10)),
            ("h1", "out", nn.Linear(40, 10, bias=False)),
        ],
        input_shape=(1, 8, 8),
        output="out",
        activation="hard_sigmoid",
        output_activation="linear",
        **settings,
    )


@pytest.mark.parametrize("rule", ["ep", "cep"])
def test_a_network_with_skips_learns_the_digits(rule: str) -> None:
    data, net = load("digits"), skip_network(schedule="asynchronous")
    phases: dict[str, Any] = {"free_steps": 12, "nudged_steps": 6, "beta": 0.5, "nudging": "symmetric"}
    if rule == "cep":
        trainer = cep.Trainer(cep.CEP(net, **phases, lr=0.03))
    else:
        trainer = cep.Trainer(cep.EP(net, **phases), torch.optim.SGD(net.parameters(), lr=0.03))
    history = trainer.fit(data.train_batches(20), 3, test=data.test_batches(500), progress=False)
    assert history[-1]["test_error"] < history[0]["train_error"]
    assert history[-1]["test_error"] < 15


def small_trainer(turns: list[list[str]] | None = None) -> cep.Trainer:
    torch.manual_seed(11)
    sizes = {"input": 12, "h1": 6, "h2": 5, "out": 3}
    connections = [(below, above, nn.Linear(sizes[below], sizes[above])) for below, above, _ in skip_connections()]
    net = cep.graph(connections, input_shape=12, output="out", turns=turns)
    return cep.Trainer(cep.EP(net, 12, 5, 0.2), torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


def test_a_run_of_a_graph_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, parts = small_trainer(), small_trainer()
    expected = fit(whole)
    fit(parts, tmp_path / "run", epochs=2)
    resumed = small_trainer()
    history = fit(resumed, tmp_path / "run", resume=True)
    assert without_seconds(history) == without_seconds(expected)
    assert all(map(torch.equal, whole.rule.net.parameters(), resumed.rule.net.parameters()))
    other = small_trainer(turns=[["h1"], ["h2"], ["out"]])
    before: list[Tensor] = [p.clone() for p in other.rule.net.parameters()]
    with pytest.raises(ValueError, match=r"rule\['network'\] is .*turns=.*, but the run to resume has"):
        fit(other, tmp_path / "run", epochs=4, resume=True)
    assert all(map(torch.equal, before, other.rule.net.parameters()))
