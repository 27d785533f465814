"""Calls of many batches against calls of one: the same bits, of every variant, instruction set and thread count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from convolution_variants import build_chain, chain_variants, name_of_chain
from kernel_runs import rates
from torch import Tensor
from variants import TOLERANCES, VARIANTS, build, copy_of, name_of

from ceprop_cuda import ops
from ceprop_cuda.spec.dynamics import Circuit, Nudge
from ceprop_cuda.spec.reference import loss

CHAINS = chain_variants()
DTYPES = [torch.float64, torch.float32]
COUNT = 3  # batches
SIGNS = (1, -1, 1)


class Case:
    """A network, a data set of which each batch takes samples in another order, and settings for both sorts of call."""

    def __init__(self, variant: dict[str, Any], dtype: torch.dtype, **settings: Any) -> None:
        made = build_chain if "chain" in variant else build
        (self.circuit, self.x, self.target), self.nudge = made(variant, dtype)
        batch = len(self.x)
        self.order = torch.stack([torch.randperm(batch) for _ in range(COUNT)])
        self.betas = torch.tensor([sign * self.nudge.beta for sign in SIGNS], dtype=torch.float64)
        self.rates = torch.tensor([[n * lr for lr in rates(self.circuit)] for n in (1, 2, 1)], dtype=torch.float64)
        self.settings = {"free_steps": 6, "nudged_steps": 4, **settings}

    def batches(self) -> list[tuple[Tensor, Nudge, list[float]]]:
        each = zip(self.order, self.betas.tolist(), self.rates.tolist(), strict=True)
        return [(self.x[o], replace(self.nudge, target=self.target[o], beta=beta), lr) for o, beta, lr in each]

    def many(self, circuit: Circuit, *, momenta: list[Tensor] | None = None, **more: Any) -> ops.LearnedMany:
        settings = {"weight_decay": [0.0], "momentum": [0.0], **self.settings, **more}
        return ops.learn(
            [circuit],
            self.x,
            self.target,
            self.order[None],
            betas=self.betas[None],
            rates=self.rates[None],
            values=None,
            nudge_at=self.nudge.at,
            loss=self.nudge.loss,
            momenta=momenta or [],
            **settings,
        )


def settings_of(variant: dict[str, Any]) -> list[dict[str, Any]]:
    free = variant["feedback"] == "free"
    gated = free and "chain" not in variant
    settings: list[dict[str, Any]] = [{}, {"symmetric": True}, {"tolerance": 1e-2}]
    return settings + [{"shared_update": True}] * free + [{"gate": "unit"}, {"gate": "connection"}] * gated


def states_of(ran: Any) -> list[Tensor]:
    return [s for phase in (ran.free_states, *ran.nudged_states) for s in phase]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def check_continual(variant: dict[str, Any], dtype: torch.dtype, update: str = "auto") -> None:
    # Without a weight decay weights between layers may keep still in a phase, with it they never do.
    for settings, decay in [({}, 0.1), *zip(settings_of(variant), cycle((0.0, 0.0, 0.1)), strict=False)]:
        case = Case(variant, dtype, update=update, **settings)
        single, many = copy_of(case.circuit), copy_of(case.circuit)
        steps = [
            ops.cep_step(single, x, nudge, lr=lr, weight_decay=decay, **case.settings)
            for x, nudge, lr in case.batches()
        ]
        ran = case.many(many, continual=True, weight_decay=[decay])
        assert_same(many.parameters(), single.parameters())
        assert not all(torch.equal(p, q) for p, q in zip(many.weights, case.circuit.weights, strict=True))
        assert_same([s for phase in ran.states[0] for s in phase], states_of(steps[-1]))
        assert ran.steps[0].tolist() == [step.steps.tolist() for step in steps]
        assert ran.learned.tolist() == [COUNT]
        check_counts(case, ran, [step.output for step in steps])


def check_counts(case: Case, ran: ops.LearnedMany, outputs: list[Tensor]) -> None:
    targets = [case.target[order] for order in case.order]
    pairs = list(zip(outputs, targets, strict=True))
    wanted = torch.stack([loss(output.double(), target.double(), case.nudge.loss) for output, target in pairs])
    torch.testing.assert_close(ran.loss[0], wanted, rtol=1e-12 if case.x.dtype == torch.float64 else 1e-5, atol=1e-12)
    assert ran.wrong[0].tolist() == [int((output.argmax(1) != target.argmax(1)).sum()) for output, target in pairs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_continual_ep_has_the_bits_of_single_calls(variant: dict[str, Any], dtype: torch.dtype) -> None:
    check_continual(variant, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", CHAINS, ids=name_of_chain)
def test_convolutions_have_the_bits_of_single_calls(variant: dict[str, Any], dtype: torch.dtype) -> None:
    check_continual(variant, dtype)


@pytest.mark.parametrize("update", ["literal", "low_rank"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS[::5], ids=name_of)
def test_both_forms_on_every_instruction_set(
    kernels: str, variant: dict[str, Any], dtype: torch.dtype, update: str
) -> None:
    check_continual(variant, dtype, update)


def descend(case: Case, circuit: Circuit, momentum: float, decay: float, accumulate: bool) -> list[Tensor]:
    """What torch.optim.SGD makes of EP's gradients, batch by batch; its momenta."""
    ps = [p.requires_grad_() for p in circuit.parameters()]
    lists = (range(len(circuit.weights)), [c for c, b in enumerate(circuit.biases) if b is not None])
    of = [*lists[0], *lists[1], *(circuit.structure.inner if circuit.free_feedback else ())]
    groups = [{"params": [p], "lr": 0.0} for p in ps]
    sgd = torch.optim.SGD(groups, momentum=momentum, weight_decay=decay)
    for x, nudge, lr in case.batches():
        with torch.no_grad():
            ran = ops.ep_step(circuit, x, nudge, accumulate=accumulate, **case.settings)
        for p, group, connection, g in zip(ps, sgd.param_groups, of, ran.gradients.parameters(), strict=True):
            p.grad, group["lr"] = g, lr[connection]
        sgd.step()
    for p in ps:
        p.requires_grad_(False)
    return [sgd.state[p]["momentum_buffer"] for p in ps] if momentum else []


def check_descent(variant: dict[str, Any], dtype: torch.dtype) -> None:
    kinds = ((0.0, 0.0, False), (0.0, 0.05, True), (0.9, 0.05, False), (0.8, 0.0, True))
    cases = [({}, kind) for kind in kinds] + list(zip(settings_of(variant)[1:], cycle(kinds[1:]), strict=False))
    for settings, (momentum, decay, accumulate) in cases:
        case = Case(variant, dtype, **settings)
        by_torch, many = copy_of(case.circuit), copy_of(case.circuit)
        wanted = descend(case, by_torch, momentum, decay, accumulate)
        none = case.x.new_empty(0)
        every = [*many.weights, *many.biases, *(many.free_feedback or ())]
        momenta = [none if p is None else torch.zeros_like(p) for p in every] if momentum else []
        found = case.many(
            many,
            continual=False,
            accumulate=accumulate,
            weight_decay=[decay],
            momentum=[momentum],
            momenta=momenta,
        )
        assert found.learned.tolist() == [COUNT]
        kept = [g for g in momenta if g.numel() > 0]
        # Two ways to round the same sums, in networks whose steps contract: the tolerance of one kernel's results.
        limit = 10 * TOLERANCES[dtype]["floor"]
        for a, b, p in zip(many.parameters(), by_torch.parameters(), case.circuit.parameters(), strict=True):
            assert (a - b).norm() <= limit * (p.norm() + (b - p).norm())
        for a, b in zip(kept, wanted, strict=True):
            assert (a - b).norm() <= limit / abs(case.nudge.beta) * (b.norm() + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS[::2] + VARIANTS[1::6] + CHAINS[::3], ids=str)
def test_ep_descends_as_sgd_does(variant: dict[str, Any], dtype: torch.dtype) -> None:
    check_descent(variant, dtype)


@pytest.mark.parametrize("continual", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS[::4] + CHAINS[::6], ids=str)
def test_bitwise_the_same_for_every_number_of_threads(
    threads: Callable[[int], None], variant: dict[str, Any], dtype: torch.dtype, continual: bool
) -> None:
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        torch.manual_seed(0)
        case = Case(variant, dtype)
        circuit = copy_of(case.circuit)
        ran = case.many(circuit, continual=continual)
        results.append([*circuit.parameters(), ran.loss, ran.wrong, ran.steps])
    for found in results[1:]:
        assert_same(found, results[0])


@pytest.mark.parametrize("continual", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("variant", [*VARIANTS[::5], *CHAINS[::5]], ids=str)
def test_networks_together_have_the_bits_of_each_alone(
    threads: Callable[[int], None], variant: dict[str, Any], count: int, continual: bool
) -> None:
    threads(count)
    case = Case(variant, torch.float32)
    networks = [copy_of(case.circuit) for _ in range(4)]
    for factor, network in zip((1.0, 0.9, 1.1, 0.8), networks, strict=True):
        for p in network.parameters():
            p.mul_(factor)
    alone = [copy_of(network) for network in networks]
    orders = torch.stack([case.order[:, torch.randperm(len(case.x))] for _ in networks])
    betas = torch.stack([(1 + r / 10) * case.betas for r in range(4)])
    rates_of_all = torch.stack([(1 + r / 5) * case.rates for r in range(4)])
    decays = [0.0, 0.1, 0.0, 0.2]

    def learn(circuits: list[Circuit], which: slice) -> ops.LearnedMany:
        return ops.learn(
            circuits,
            case.x,
            case.target,
            orders[which],
            betas=betas[which],
            rates=rates_of_all[which],
            values=None,
            continual=continual,
            nudge_at=case.nudge.at,
            loss=case.nudge.loss,
            weight_decay=decays[which],
            momentum=[0.0] * len(circuits),
            **case.settings,
        )

    together = learn(networks, slice(None))
    for r, network in enumerate(alone):
        ran = learn([network], slice(r, r + 1))
        assert_same(networks[r].parameters(), network.parameters())
        assert_same([s for phase in together.states[r] for s in phase], [s for phase in ran.states[0] for s in phase])
        assert_same([together.loss[r], together.wrong[r], together.steps[r]], [ran.loss[0], ran.wrong[0], ran.steps[0]])
