"""The setting ``gate`` of the rules, of presets and of runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import QUICK, config_of
from mnist_files import write_mnist

import ceprop_cuda as cep
from ceprop_cuda import cli, theorem
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.run_directory import read_checkpoint
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Nudge

X, Y = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])


def field() -> cep.Network:
    torch.manual_seed(0)
    return cep.mlp(6, 5, 3, feedback="free")


def field_of_convolutions() -> cep.Network:
    torch.manual_seed(0)
    return cep.convnet((1, 6, 6), (2,), 3, 0, "m", (3,), feedback="free")


@pytest.mark.parametrize("gate", [None, "unit", "connection"])
def test_the_rules_learn_by_it(gate: str | None) -> None:
    net = field().double()
    circuit, x, nudge = net.circuit(), X.double(), Nudge(torch.eye(3, dtype=torch.float64)[Y], 0.2)
    with torch.no_grad():
        ep = reference.ep_step(circuit, x, nudge, free_steps=9, nudged_steps=4, gate=gate)
        continual = reference.cep_step(circuit, x, nudge, free_steps=9, nudged_steps=4, lr=[0.1, 0.1], gate=gate)
    cep.EP(net, 9, 4, 0.2, backend="reference", gate=gate).backward(x, Y)
    assert all(torch.equal(p.grad, g) for p, g in zip(circuit.parameters(), ep.gradients.parameters(), strict=True))
    cep.CEP(net, 9, 4, 0.2, 0.1, backend="reference", gate=gate).step(x, Y)
    assert all(map(torch.equal, circuit.parameters(), continual.circuit.parameters()))


@pytest.mark.parametrize("gate", ["units", "none", True, 1, "Unit"])
def test_a_word_that_is_no_gate(gate: object) -> None:
    with pytest.raises(ValueError, match=r"gate must be one of None, 'unit', 'connection', got"):
        cep.EP(field(), 9, 4, 0.2, gate=gate)  # type: ignore[arg-type]


def test_tied_feedback_has_no_gate() -> None:
    for make in (
        lambda net: cep.EP(net, 9, 4, 0.2, gate="unit"),
        lambda net: cep.CEP(net, 9, 4, 0.2, 0.1, gate="unit"),
    ):
        with pytest.raises(ValueError, match=r"^gate='unit' needs a network with feedback='free', got tied feedback$"):
            make(cep.mlp(6, 5, 3))
    circuit, nudge = cep.mlp(6, 5, 3).circuit(), Nudge(torch.eye(3)[Y], 0.2)
    with pytest.raises(ValueError, match=r"^gate='unit' is of a vector field's own contrast .*, got tied feedback$"):
        reference.ep_step(circuit, X, nudge, free_steps=1, nudged_steps=1, gate="unit")


def test_a_shared_update_has_no_gate() -> None:
    with pytest.raises(ValueError, match=r"^gate='unit' is not for shared_update=True, the update of tied weights$"):
        cep.CEP(field(), 9, 4, 0.2, 0.1, shared_update=True, gate="unit")
    circuit, nudge = field().circuit(), Nudge(torch.eye(3)[Y], 0.2)
    with pytest.raises(ValueError, match=r"^gate='unit' is of a vector field's own contrast .*, got a shared update$"):
        reference.cep_step(
            circuit, X, nudge, free_steps=1, nudged_steps=1, lr=[0.1, 0.1], shared_update=True, gate="unit"
        )


def test_it_may_be_set_later_and_is_checked_by_the_next_call() -> None:
    rule = cep.EP(field(), 9, 4, 0.2, backend="reference")
    rule.gate = "unit"
    rule.backward(X, Y)
    rule.gate = "units"
    with pytest.raises(ValueError, match="gate must be one of"):
        rule.backward(X, Y)
    rule.gate, rule.shared_update = "connection", True
    with pytest.raises(ValueError, match="gate='connection' is not for shared_update=True"):
        rule.backward(X, Y)


@pytest.mark.parametrize("gate", ["unit", "connection"])
def test_convolutions_have_gates_too(gate: str, caplog: pytest.LogCaptureFixture) -> None:
    x, found = torch.rand(4, 1, 6, 6), []
    net = field_of_convolutions()
    with caplog.at_level(logging.WARNING, "ceprop_cuda"):
        for backend in ("auto", "fused", "reference"):
            net.zero_grad()
            cep.EP(net, 9, 4, 0.2, backend=backend, gate=gate).backward(x, Y)
            found.append([p.grad.clone() for p in net.circuit().parameters()])
    assert not caplog.messages
    for by_auto, by_kernels, expected in zip(*found, strict=True):
        assert torch.equal(by_auto, by_kernels)
        assert torch.allclose(by_kernels, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gate", ["unit", "connection"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_theorem_compares_the_gated_updates(accumulate: bool, gate: str) -> None:
    net, x = field().double(), X.double()
    rule = cep.EP(net, 9, 4, 0.2, accumulate=accumulate, backend="reference", gate=gate)
    found = theorem.compare(rule, x, Y)
    rule.backward(x, Y)
    for match, p in zip(found.parameters, net.circuit().parameters(), strict=True):
        assert torch.allclose(match.summed_updates, -p.grad.reshape(match.summed_updates.shape), atol=1e-12)


def test_presets_hand_it_on() -> None:
    preset = replace(PRESETS["c-vf-1h"], hidden=(5,), gate="connection")
    assert preset.rule(preset.network(6, 3)).gate == "connection"
    with pytest.raises(ValueError, match="BPTT has no gate"):
        replace(preset, bptt=True).rule(preset.network(6, 3))


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs find data and leave what they make."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")


def small_run(*options: str) -> int:
    return cli.main([*QUICK, "--preset", "c-vf-1h", "--steps", "6", "3", *options])


def test_a_run_goes_on_with_its_gate(in_folder: None) -> None:
    options = ("--gate", "connection")
    assert small_run(*options, "--epochs", "2", "--out", "whole") == 0
    assert small_run(*options, "--epochs", "1", "--out", "halves") == 0
    assert cli.main(["train", "--resume", "--epochs", "2", "--out", "halves"]) == 0
    for run in ("whole", "halves"):
        assert config_of(run)["gate"] == config_of(run)["rule"]["gate"] == "connection"
    whole, halves = (read_checkpoint(Path(run))["network"] for run in ("whole", "halves"))
    assert list(whole) == list(halves)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert small_run("--gate", "none", "--epochs", "2", "--out", "plain") == 0
    assert config_of("plain")["gate"] == "none" and config_of("plain")["rule"]["gate"] is None
    plain = read_checkpoint(Path("plain"))["network"]
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)


def test_a_run_refuses_another_gate(in_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_run("--gate", "unit", "--epochs", "1", "--out", "run") == 0
    assert cli.main(["train", "--resume", "--gate", "none", "--epochs", "2", "--out", "run"]) == 2
    assert "--gate none contradicts the run in" in capsys.readouterr().err


def test_options_that_have_no_gate(in_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_run("--gate", "unit", "--rule", "bptt") == 2
    assert "--gate unit is not for --rule bptt" in capsys.readouterr().err
    assert cli.main([*QUICK, "--preset", "c-ep-1h", "--gate", "unit"]) == 2
    assert "gate='unit' needs a network with feedback='free', got tied feedback" in capsys.readouterr().err
