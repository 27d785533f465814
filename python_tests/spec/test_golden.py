"""One training step against results of independent code, in float64: states, and what every parameter gains."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from golden_steps import TOLERANCE, assert_step_is_golden, check_changes, check_states
from problems import GOLDEN_NAMES, Golden, load_golden, relative_error
from torch import nn

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec import reference


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
    assert_step_is_golden(name, backend)


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
