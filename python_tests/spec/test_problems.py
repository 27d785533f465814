"""The helpers of the other tests, tested."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from problems import GOLDEN_NAMES, load_golden, random_problem, relative_error
from variants import network_variants

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS


def test_relative_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_relative_error_of_zeros() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf


def test_relative_error_passes_no_bound_on_nan() -> None:
    nan = torch.tensor([math.nan])
    assert not relative_error(nan, nan) < 1


def test_relative_error_is_computed_in_float64() -> None:
    a = torch.tensor([1.0, 1.0])
    assert relative_error(a, a.double() + 1e-12) == pytest.approx(1e-12, rel=1e-3)


def test_relative_error_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(2,\)"):
        relative_error(torch.ones(2, 1), torch.ones(2))


# Tied energy dynamics of these units have no fixed point: rho' drops to 0 at 1/2, inside the clip to [0, 1], and units
# that are driven there chatter.
CHATTERING = ("centered_hard_sigmoid", "energy", "tied")


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in itertools.product(ACTIVATIONS, ("prototypical", "energy"), ("tied", "free", "symmetric"))
        if kind != CHATTERING
    ],
    ids="-".join,
)
def test_random_problems_converge(kind: tuple[str, str, str], readout: bool) -> None:
    activation, dynamics, feedback = kind
    circuit, x, target = random_problem(activation=activation, dynamics=dynamics, feedback=feedback, readout=readout)
    states = reference.relax(circuit, x, 200).states
    assert [s.shape for s in states] == [(3, 6), (3, 5), (3, 4)][: circuit.layers]
    assert reference.logits(circuit, states).shape == target.shape == (3, 4)
    for s, after in zip(states, reference.step(circuit, x, states), strict=True):
        assert (s - after).abs().max() < 1e-12
        assert s.std() > 0.01  # they settle at different places, not all at a clip


def test_random_problems_are_repeatable_and_differ_by_seed() -> None:
    first, again, other = (random_problem(feedback="free", seed=seed) for seed in (0, 0, 1))
    for p, same, different in zip(*(q.circuit.parameters() for q in (first, again, other)), strict=True):
        assert p is not same
        assert torch.equal(p, same)
        assert not torch.equal(p, different)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_random_problems_in_float32_are_those_in_float64_rounded() -> None:
    single, double = (random_problem(dtype=dtype) for dtype in (torch.float32, torch.float64))
    for a, b in zip(single.circuit.parameters(), double.circuit.parameters(), strict=True):
        assert torch.equal(a, b.float())
    assert torch.equal(single.x, double.x.float())
    assert torch.equal(single.target, double.target.float())


def test_large_random_problems_converge_too() -> None:
    circuit, x, _ = random_problem((784, 256, 128, 10), batch=2)
    states = reference.relax(circuit, x, 200).states
    for s, after in zip(states, reference.step(circuit, x, states), strict=True):
        assert (s - after).abs().max() < 1e-12


def test_golden_cases_are_there_and_load_into_new_float64_tensors() -> None:
    assert {"ep_1h", "cep_2h", "cvf_1h", "eb_cep_1h", "lab_mlp_symmetric"} <= set(GOLDEN_NAMES)
    for name in GOLDEN_NAMES:
        case, again = load_golden(name), load_golden(name)
        for p, other, change in zip(case.circuit.parameters(), again.circuit.parameters(), case.changes, strict=True):
            assert p.dtype == change.dtype == torch.float64
            assert p.shape == change.shape
            assert change.abs().max() > 0
            assert p.data_ptr() != other.data_ptr()


def test_both_schedules_meet_every_value_of_the_other_columns() -> None:
    variants = network_variants()
    assert 0.25 < sum(variant["schedule"] == "asynchronous" for variant in variants) / len(variants) < 0.4
    for column in set().union(*variants) - {"schedule"}:
        values = {str(variant.get(column)) for variant in variants}
        assert len(values) > 1
        assert len({(str(variant.get(column)), variant["schedule"]) for variant in variants}) == 2 * len(values)
