"""The settings that are one of some words, as types for signatures, from which the checks at run time come."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from .checks import one_of

# Of networks. Activations and losses are no types: the tables ``spec.dynamics.BY_NAME`` and ``spec.losses.BY_NAME`` say
# which there are.
DynamicsKind: TypeAlias = Literal["prototypical", "energy"]
Feedback: TypeAlias = Literal["tied", "free"]
Readout: TypeAlias = Literal["softmax"]
Schedule: TypeAlias = Literal["synchronous", "asynchronous"]

# Of nudges and of learning.
NudgeAt: TypeAlias = Literal["state", "drive"]
Nudging: TypeAlias = Literal["positive", "random_sign", "symmetric"]
Gate: TypeAlias = Literal["unit", "connection"]
Update: TypeAlias = Literal["auto", "literal", "low_rank"]

# Of what computes.
Backend: TypeAlias = Literal["auto", "fused", "reference"]
Precision: TypeAlias = Literal["exact", "tf32"]
EngineName: TypeAlias = Literal["auto", "fused", "teams", "graph"]


def words(of: Any) -> tuple[Any, ...]:
    """The values of one of these types, in the order in which they are written; of a union with None it comes first."""
    parts = get_args(of)
    if get_origin(of) is Literal:
        return parts
    inner = tuple(word for part in parts if part is not NoneType for word in words(part))
    return (None, *inner) if NoneType in parts else inner


def chosen(name: str, value: object, of: Any) -> Any:
    """``value``, if it is one of the values of the type ``of``; ValueError, which names them, if not."""
    return one_of(name, value, words(of))
