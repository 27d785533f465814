"""Calls of the public API with one argument that is wrong, drawn by chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

import ceprop_cuda as cep
from ceprop_cuda.arguments.checks import shown
from ceprop_cuda.spec.dynamics import ACTIVATIONS

NAN, INF = float("nan"), float("inf")
# What a caller may pass by mistake. What is right for one argument is left out where it is drawn.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-320, 1e308, NAN, INF, -INF),
    *("", "auto", "3", "text", b"3", "x" * 60, [], [3], (), {}, {3}, 1j, Fraction(1, 3), object, print),
    *(np.float32(0.5), np.int64(3), torch.tensor(0.5), torch.tensor(3), range(3)),
    *(np.zeros(3), torch.zeros(3), torch.zeros(300, 300), 10**400, 10**5000),
)


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**31


def is_real(value: Any, allowed: Callable[[float], bool]) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return math.isfinite(number) and allowed(number)


def is_one_of(value: Any, *choices: Any) -> bool:
    """As Python sees it: 1 is True, 0 is False."""
    return any(isinstance(value, str | bool | int | float | None) and value == choice for choice in choices)


# Whether a value is right, by argument.
OF_NETWORKS: dict[str, Callable[[Any], bool]] = {
    "activation": lambda v: is_one_of(v, *ACTIVATIONS),
    "output_activation": lambda v: is_one_of(v, None, *ACTIVATIONS),
    "dynamics": lambda v: is_one_of(v, "prototypical", "energy"),
    "dt": lambda v: is_real(v, lambda number: number > 0),
    "clip": lambda v: is_one_of(v, True, False),
    "feedback": lambda v: is_one_of(v, "tied", "free"),
    "readout": lambda v: is_one_of(v, None, "softmax"),
    "free_steps": lambda v: is_whole(v, 0),
    "schedule": lambda v: is_one_of(v, "synchronous", "asynchronous"),
}
OF_RELAX: dict[str, Callable[[Any], bool]] = {
    "steps": lambda v: is_whole(v, 0),
    "beta": lambda v: is_real(v, lambda number: number != 0),
    "nudge_at": lambda v: is_one_of(v, None, "state", "drive"),
    "loss": lambda v: is_one_of(v, None, "mse"),
    "backend": lambda v: is_one_of(v, "auto", "fused", "reference"),
    "tolerance": lambda v: v is None or is_real(v, lambda number: number >= 0),
    "precision": lambda v: is_one_of(v, "exact"),
}
OF_RULES: dict[str, Callable[[Any], bool]] = {
    "free_steps": lambda v: is_whole(v, 0),
    "nudged_steps": lambda v: is_whole(v, 1),
    **{name: OF_RELAX[name] for name in ("beta", "nudge_at", "loss", "backend", "tolerance")},
    "nudging": lambda v: is_one_of(v, "positive", "random_sign", "symmetric"),
    "shared_update": lambda v: is_one_of(v, True, False),
    "precision": lambda v: is_one_of(v, "exact", "tf32"),
}
OF_EP = {**OF_RULES, "accumulate": lambda v: is_one_of(v, True, False)}
OF_CEP: dict[str, Callable[[Any], bool]] = {
    **OF_RULES,
    "lr": lambda v: is_real(v, lambda number: number >= 0) or isinstance(v, range),  # of three rates
    "weight_decay": lambda v: is_real(v, lambda number: number >= 0),
    "update": lambda v: is_one_of(v, "auto", "literal", "low_rank"),
}
OF_BPTT: dict[str, Callable[[Any], bool]] = {
    "free_steps": lambda v: is_whole(v, 0),
    "unrolled_steps": lambda v: is_whole(v, 1),
    "backend": OF_RELAX["backend"],
}


@dataclass
class ApiCall:
    """A call that has to be refused, and what must be as before after it."""

    label: str
    run: Callable[[], object]
    net: cep.Network | None = None
    tensors: list[torch.Tensor] = field(default_factory=list)


def small_network(draw: random.Random) -> cep.Network:
    torch.manual_seed(draw.randrange(1 << 30))
    feedback = draw.choice(("tied", "free"))
    if draw.random() < 0.3:
        return cep.convnet((2, 6, 5), (3,), 3, pools=draw.choice("mai"), fc=(4, 3), feedback=feedback)
    return cep.mlp(6, 5, 4, 3, feedback=feedback)


def wrong_value(draw: random.Random, is_right: Callable[[Any], bool]) -> Any:
    return draw.choice([value for value in VALUES if not is_right(value)])


def a_setting_of_a_network(draw: random.Random) -> ApiCall:
    name = draw.choice(list(OF_NETWORKS))
    value = wrong_value(draw, OF_NETWORKS[name])
    make = draw.choice((lambda **s: cep.mlp(6, 5, 3, **s), lambda **s: cep.convnet((1, 6, 6), (2,), 3, fc=(3,), **s)))
    return ApiCall(f"Network {name}={shown(value)}", lambda: make(**{name: value}))


def a_size(draw: random.Random) -> ApiCall:
    value = wrong_value(draw, lambda v: is_whole(v, 1))
    sizes: list[Any] = [6, 5, 3]
    place = draw.randrange(3)
    sizes[place] = value
    kind = draw.randrange(3)
    if kind == 0:
        return ApiCall(f"mlp sizes[{place}]={shown(value)}", lambda: cep.mlp(*sizes))
    if kind == 1:
        return ApiCall(f"convnet input_shape[{place}]={shown(value)}", lambda: cep.convnet(sizes, (2,), 1, fc=(3,)))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    return ApiCall(f"Network input_shape={shown(sizes)}", lambda: cep.Network(model, sizes))


def a_setting_of_a_rule(draw: random.Random) -> ApiCall:
    """When it is made, or set later and refused by the next call."""
    net = small_network(draw)
    x, y = samples(net)
    kinds: tuple[tuple[type, dict[str, Callable[[Any], bool]], dict[str, Any]], ...] = (
        (cep.EP, OF_EP, {"free_steps": 3, "nudged_steps": 2, "beta": 0.1}),
        (cep.CEP, OF_CEP, {"free_steps": 3, "nudged_steps": 2, "beta": 0.1, "lr": 0.1}),
        (cep.BPTT, OF_BPTT, {"free_steps": 3, "unrolled_steps": 2}),
    )
    kind, rights, settings = draw.choice(kinds)
    name = draw.choice(list(rights))
    value = wrong_value(draw, rights[name])
    if draw.random() < 0.5:
        return ApiCall(f"{kind.__name__} {name}={shown(value)}", lambda: kind(net, **settings | {name: value}), net)
    rule = kind(net, **settings)

    def set_and_step() -> None:
        setattr(rule, name, value)
        (rule.step if kind is cep.CEP else rule.backward)(x, y)

    return ApiCall(f"{kind.__name__}.{name}={shown(value)}", set_and_step, net, [x, y])


def an_argument_of_relax(draw: random.Random) -> ApiCall:
    net = small_network(draw)
    x, y = samples(net)
    name = draw.choice(list(OF_RELAX))
    value = wrong_value(draw, OF_RELAX[name])
    settings: dict[str, Any] = {"steps": 3, "target": y, "beta": 0.1, name: value}
    return ApiCall(f"relax {name}={shown(value)}", lambda: net.relax(x, **settings), net, [x, y])


def states_to_start_from(draw: random.Random) -> ApiCall:
    net = small_network(draw)
    x, _ = samples(net)
    good = [s.detach() for s in net.relax(x, 1)]
    wrong: dict[str, Any] = {
        "a number": 3,
        "one tensor": good[0],
        "none of them": [],
        "fewer": good[:-1],
        "more": [*good, good[-1]],
        "None": [None] * len(good),
        "numbers": [1.0] * len(good),
        "text": "states",
        "other samples": [s[:1] for s in good],
        "other dtypes": [s.double() for s in good],
        "half": [s.half() for s in good],
        "another device": [s.to("meta") for s in good],
        "arrays": [s.numpy() for s in good],
    }
    label = draw.choice(list(wrong))
    return ApiCall(f"relax states: {label}", lambda: net.relax(x, 3, states=wrong[label]), net, [x, *good])


def samples(net: cep.Network) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(3, *net.input_shape), torch.tensor([0, 2, 1])


def an_input_or_target(draw: random.Random) -> ApiCall:
    net = small_network(draw)
    x, y = samples(net)
    inputs: dict[str, Any] = {
        "no samples": x[:0],
        "one sample without a batch": x[0],
        "more of a side": torch.cat([x, x], -1),
        "one more axis": x[None],
        "a number": torch.tensor(1.0),
        **{str(dtype): x.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64, torch.complex64)},
        "on meta": x.to("meta"),
        "sparse": x.to_sparse(),
        "an array": x.numpy(),
        "a list": x.tolist(),
        "None": None,
        "text": "x",
    }
    targets: dict[str, Any] = {
        "no samples": y[:0],
        "fewer": y[:2],
        "a number": torch.tensor(1),
        "too large": torch.tensor([0, 3, 1]),
        "negative": torch.tensor([0, -1, 1]),
        "huge": torch.tensor([0, 2**62, 1]),
        **{str(dtype): y.to(dtype) for dtype in (torch.int32, torch.float32, torch.bool)},
        "more classes": torch.rand(3, 4),
        "of integers": torch.ones(3, 3, dtype=torch.int64),
        "complex": torch.ones(3, 3, dtype=torch.complex64),
        "on meta": y.to("meta"),
        "sparse": torch.rand(3, 3).to_sparse(),
        "an array": y.numpy(),
        "a list": y.tolist(),
        "None": None,
    }
    backend = draw.choice(("fused", "reference", "auto"))
    calls: dict[str, Callable[[Any, Any], object]] = {
        "EP": lambda x, y: cep.EP(net, 3, 2, 0.1, backend=backend).backward(x, y),
        "CEP": lambda x, y: cep.CEP(net, 3, 2, 0.1, 0.1, backend=backend).step(x, y),
        "BPTT": lambda x, y: cep.BPTT(net, 3, 2, backend=backend).backward(x, y),
        "predict": lambda x, y: cep.EP(net, 3, 2, 0.1, backend=backend).predict(x, y),
        "relax": lambda x, y: net.relax(x, 3, target=y, beta=0.1, backend=backend),
    }
    name = draw.choice(list(calls))
    given, label = draw.choice(((inputs, draw.choice(list(inputs))), (targets, draw.choice(list(targets)))))
    if given is targets and label == "None" and name == "relax":
        label = "a list"
    if given is inputs:
        return ApiCall(f"{name} {backend} x: {label}", lambda: calls[name](inputs[label], y), net, [x, y])
    return ApiCall(f"{name} {backend} y: {label}", lambda: calls[name](x, targets[label]), net, [x, y])


def numbers_that_are_not_finite(draw: random.Random) -> ApiCall:
    """A step whose numbers are not finite stores nothing."""
    net = small_network(draw)
    x, _ = samples(net)
    target = torch.rand(3, net.classes)
    place = draw.choice(("x", "target", "a weight", "a bias"))
    of_net = {"a weight": net.weights, "a bias": net.biases}
    broken: Any = {"x": x, "target": target}.get(place)
    broken = draw.choice(of_net[place]) if broken is None else broken
    with torch.no_grad():
        broken.view(-1)[draw.randrange(broken.numel())] = draw.choice((NAN, INF, -INF, 1e38, -1e38))
    backend = draw.choice(("fused", "reference"))
    learn = {
        "EP": lambda: cep.EP(net, 3, 2, 0.1, backend=backend).backward(x, target),
        "CEP": lambda: cep.CEP(net, 3, 2, 0.1, 0.1, backend=backend).step(x, target),
        "BPTT": lambda: cep.BPTT(net, 3, 2, backend=backend).backward(x, target),
    }
    name = draw.choice(list(learn))
    return ApiCall(f"{name} {backend} with {place} not finite", learn[name], net, [x, target])


MISTAKES: tuple[Callable[[random.Random], ApiCall], ...] = (
    a_setting_of_a_network,
    a_size,
    a_setting_of_a_rule,
    an_argument_of_relax,
    states_to_start_from,
    an_input_or_target,
    numbers_that_are_not_finite,
)
