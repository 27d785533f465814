"""Settings that are one of some words: the types in signatures say what the checks at run time take."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal, get_origin

import pytest
from small_network import X, Y, network

import ceprop_cuda as cep
from ceprop_cuda.arguments import choices
from ceprop_cuda.arguments.choices import words
from ceprop_cuda.spec.losses import LOSSES

TYPES = {name: of for name, of in vars(choices).items() if get_origin(of) is Literal}
NETWORK = {"dynamics": "prototypical", "feedback": "tied", "readout": None, "schedule": "synchronous"}


def test_words_are_those_of_the_types() -> None:
    assert words(choices.Backend) == ("auto", "fused", "reference")
    assert words(None | choices.Gate) == (None, "unit", "connection")
    assert len(TYPES) == 11


def words_of(call: Any, name: str) -> tuple[Any, ...]:
    """What the signature of ``call`` says of this parameter, or of losses the table of the specification."""
    if name == "loss":
        return (None, *LOSSES)
    annotation = inspect.signature(call).parameters[name].annotation
    return words(eval(annotation, vars(typing) | vars(choices)))


def assert_taken(name: str, of_type: tuple[Any, ...], call: Any) -> None:
    """Each of the words, and nothing else."""
    for word in of_type:
        try:
            call(**{name: word})
        except ValueError as error:  # it needs another network, say, but is known
            assert "must be one of" not in str(error) or "readout" in str(error), (name, word)
    with pytest.raises(ValueError, match=f"^{name} must be one of {', '.join(map(repr, of_type))}, got 'something'$"):
        call(**{name: "something"})


@pytest.mark.parametrize("name", NETWORK)
def test_networks_take_what_their_signature_says(name: str) -> None:
    assert_taken(name, words_of(cep.Network, name), lambda **settings: cep.mlp(6, 5, 3, **settings))


@pytest.mark.parametrize("name", ["nudge_at", "loss", "backend", "engine", "precision"])
@pytest.mark.parametrize("method", ["relax", "settle"])
def test_relaxation_takes_what_its_signature_says(method: str, name: str) -> None:
    call = getattr(network(output_activation="linear"), method)
    assert_taken(name, words_of(call, name), lambda **given: call(X, 1, target=Y, beta=0.1, **given))


OF_BPTT = ["loss", "backend", "engine"]
OF_EP = [*OF_BPTT, "nudging", "nudge_at", "gate", "precision"]
OF_RULES = {cep.EP: OF_EP, cep.CEP: [*OF_EP, "update"], cep.BPTT: OF_BPTT}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OF_RULES.items() for name in names])
def test_rules_take_what_their_signature_says(kind: type, name: str) -> None:
    net = network(output_activation="linear", feedback="free")
    steps = {cep.EP: (3, 2, 0.1), cep.CEP: (3, 2, 0.1, 0.1), cep.BPTT: (3, 2)}[kind]
    assert_taken(name, words_of(kind, name), lambda **settings: kind(net, *steps, **settings))
