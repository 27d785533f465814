"""One training step against results of independent code, in float64: states, and what every parameter gains."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from problems import GOLDEN_NAMES, Golden, load_golden, relative_error
from torch import Tensor, nn

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec import reference

TOLERANCE = 1e-9


def check_states(case: Golden, free: list[Tensor], nudged: list[list[Tensor]]) -> None:
    for phase, expected in zip([free, *nudged], [case.free, *case.nudged], strict=True):
        for s, wanted in zip(phase, expected, strict=True):
            assert relative_error(s, wanted) < TOLERANCE


def check_changes(case: Golden, changes: list[Tensor]) -> None:
    """Changes, not the parameters after the step: where a step moves them little, they would hide its error."""
    for change, wanted in zip(changes, case.changes, strict=True):
        assert relative_error(change, wanted) < TOLERANCE


def network_of(case: Golden) -> cep.Network:
    circuit, d = case.circuit, case.circuit.dynamics
    linears = [nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64) for w in circuit.weights]
    net = cep.Network(
        nn.Sequential(nn.Flatten(), *linears),
        (case.x.shape[1],),
        activation=d.activation,
        dynamics=d.kind,
        dt=d.dt,
        clip=d.clip,
        feedback="tied" if circuit.free_feedback is None else "free",
    )
    with torch.no_grad():
        for p, value in zip(net.circuit().parameters(), circuit.parameters(), strict=True):
            p.copy_(value)
    return net


@pytest.mark.parametrize("backend", [reference, ops], ids=["reference", "ops"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_step(name: str, backend: ModuleType) -> None:
    case = load_golden(name)
    if "lr" in case.settings:
        before = [p.clone() for p in case.circuit.parameters()]  # ops move the parameters in place
        ran = backend.cep_step(case.circuit, case.x, case.nudge, **case.settings)
        changes = [after - p for after, p in zip(ran.circuit.parameters(), before, strict=True)]
    else:
        ran = backend.ep_step(case.circuit, case.x, case.nudge, **case.settings)
        changes = [-gradient for gradient in ran.gradients.parameters()]
    check_states(case, ran.free_states, ran.nudged_states)
    check_changes(case, changes)


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_public_api(name: str, backend: str) -> None:
    case = load_golden(name)
    net = network_of(case)
    parameters = net.circuit().parameters()
    settings = dict(case.settings, beta=case.nudge.beta, nudge_at=case.nudge.at, backend=backend)
    settings["nudging"] = "symmetric" if settings.pop("symmetric", False) else "positive"
    if "lr" in settings:
        out = cep.CEP(net, **settings).step(case.x, case.labels)
        before = case.circuit.parameters()
        changes = [p.detach() - value for p, value in zip(parameters, before, strict=True)]
    else:
        out = cep.EP(net, **settings).backward(case.x, case.labels)
        changes = [-p.grad for p in parameters]
    minus = [out.nudged_minus_states] if out.nudged_minus_states else []
    check_states(case, out.free_states, [out.nudged_states, *minus])
    check_changes(case, changes)
    assert relative_error(out.output, case.free[-1]) < TOLERANCE
    error = case.nudge.target - case.free[-1]
    assert out.loss.item() == pytest.approx((error**2).sum(1).mean().item() / 2, rel=TOLERANCE)
