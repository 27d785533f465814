"""What is refused as the value of an argument, in which words, whatever it is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

import ceprop_cuda as cep
from ceprop_cuda.arguments.checks import one_of, real_number, shown, whole_number

HUGE = [
    pytest.param(value, id=str(number))
    for number, value in enumerate((10**400, -(10**400), Fraction(10**400), 10**5000))
]


@pytest.mark.parametrize(
    "value", [None, "", 1.0, [], {}, b"a", object, np.zeros(3), torch.zeros(3), torch.tensor(True), np.array("a")]
)
def test_what_is_none_of_the_choices_is_refused_whatever_it_is(value: object) -> None:
    with pytest.raises(ValueError, match=r"^word must be one of 'a', True, got "):
        one_of("word", value, ("a", True))


@pytest.mark.parametrize("value", ["a", np.str_("a"), True, np.bool_(True), 1])
def test_one_of_the_choices_is_kept_as_the_choice_itself(value: object) -> None:
    assert type(one_of("word", value, ("a", True))) in (str, bool)


@pytest.mark.parametrize("value", HUGE)
def test_numbers_that_no_float_holds_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^dt must be a finite number > 0, got "):
        real_number("dt", value, lambda number: number > 0, "a finite number > 0")
    with pytest.raises(ValueError, match=r"^steps must be an int "):
        whole_number("steps", value, 0)


@pytest.mark.parametrize("value", [*HUGE, "x" * 1000, list(range(1000)), torch.zeros(300, 300), np.zeros((1, 900))])
def test_an_error_shows_a_value_shortly_and_in_one_line(value: object) -> None:
    assert len(shown(value)) < 80 and "\n" not in shown(value)


@pytest.mark.parametrize("value", ["", 0, False, [], {}, np.zeros(3)])
@pytest.mark.parametrize("readout", [None, "softmax"])
def test_only_none_stands_for_the_default_nudging_point_and_loss(value: object, readout: str | None) -> None:
    net = cep.mlp(5, 4, 3, readout=readout)
    for name in ("nudge_at", "loss"):
        with pytest.raises(ValueError, match=f"^{name}.* must be one of None, "):
            cep.EP(net, 3, 2, 0.1, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("states", [5, "ab", [1.0, 1.0], [None, None], torch.zeros(2, 2, 4), [np.zeros((2, 4))] * 2])
def test_states_that_are_no_list_of_tensors_are_refused(states: object) -> None:
    with pytest.raises(
        TypeError, match=r"^states must be a list of tensors of the shapes \[\(2, 4\), \(2, 3\)\], got "
    ):
        cep.mlp(5, 4, 3).relax(torch.rand(2, 5), 1, states=states)  # type: ignore[arg-type]


def test_a_rate_without_axes_is_one_number() -> None:
    net = cep.mlp(5, 4, 3)
    with pytest.raises(ValueError, match=r"^lr\[0\] must be a finite number >= 0, got tensor"):
        cep.CEP(net, 3, 2, 0.1, torch.tensor(0.1))  # type: ignore[arg-type]
    assert cep.CEP(net, 3, 2, 0.1, np.float64(0.1)).lr == (0.1, 0.1)


def test_beta_without_a_target_is_no_tensor() -> None:
    with pytest.raises(ValueError, match=r"^beta must be 0 without a target, got a Tensor of shape"):
        cep.mlp(5, 4, 3).relax(torch.rand(2, 5), 1, beta=torch.zeros(3))  # type: ignore[arg-type]
