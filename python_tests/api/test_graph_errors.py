"""Every graph that cannot be is refused in a sentence that names the connection or the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_problems import skip_connections
from torch import nn

import ceprop_cuda as cep

L, C, P = nn.Linear, nn.Conv2d, nn.MaxPool2d


class Doubling(nn.Linear):
    """Computes something else than the Linear that it is."""


def hooked() -> nn.Module:
    pooled = nn.Sequential(C(2, 3, 3), P(2))
    pooled[1].register_forward_hook(print)
    return pooled


SHARED = L(6, 6)
TO_OUT = ("h", "out", L(6, 4))

# Connections, other arguments, the error and its message.
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no list": ({"input": L(7, 4)}, {}, TypeError, r"connections must be a list of \(below, above, module\), got \{"),
    "none": ([], {}, TypeError, r"connections must be a list of \(below, above, module\), got \[\]"),
    "pair": ([("input", L(7, 4))], {}, TypeError, r"connections\[0\] must be \(below, above, module\), got"),
    "number": ([("input", 1, L(7, 4))], {}, TypeError, r"above of connections\[0\] must be the name of a layer, got 1"),
    "empty name": ([("", "out", L(7, 4))], {}, TypeError, r"below of connections\[0\] must be the name .*, got ''"),
    "no module": ([("input", "out", torch.relu)], {}, TypeError, r"module of connections\[0\] must be an nn.Module"),
    "to the input": ([("h", "input", L(6, 7)), TO_OUT], {}, ValueError, r"connections\[0\] .* ends at the input"),
    "to itself": (
        [("input", "h", L(7, 6)), ("h", "h", L(6, 6)), TO_OUT],
        {},
        ValueError,
        r"connections\[1\] \('h' -> 'h'\) joins layer 'h' to itself",
    ),
    "from the output": (
        [("input", "h", L(7, 6)), TO_OUT, ("out", "h", L(4, 6))],
        {},
        ValueError,
        r"connections\[2\] \('out' -> 'h'\) starts at the output",
    ),
    "unknown output": (
        skip_connections(),
        {"output": "top"},
        ValueError,
        "output must be one of the layers 'h1', 'h2', 'out', got 'top'",
    ),
    "input as output": (skip_connections(), {"output": "input"}, ValueError, "output must be one of .*, got 'input'"),
    "no name for output": (skip_connections(), {"output": 2}, ValueError, "output must be one of .*, got 2"),
    "not from the input": (
        [("input", "h", L(7, 6)), TO_OUT, ("lost", "out", L(5, 4))],
        {},
        ValueError,
        "layer 'lost' has no way from the input: no path",
    ),
    "not to the output": (
        [("input", "h", L(7, 6)), TO_OUT, ("h", "lost", L(6, 5))],
        {},
        ValueError,
        "layer 'lost' has no way to the output 'out': no path",
    ),
    "ring": (
        [("input", "h", L(7, 6)), ("h", "g", L(6, 6)), ("g", "h", L(6, 6)), TO_OUT],
        {},
        ValueError,
        r"connections\[1\] \('h' -> 'g'\) closes a ring",
    ),
    "turns as text": (skip_connections(), {"turns": "h1"}, TypeError, "turns must be lists of layers, got 'h1'"),
    "one turn": (skip_connections(), {"turns": ["h1", "h2"]}, TypeError, "turns must be lists of layers"),
    "unknown turn": (
        skip_connections(),
        {"turns": [["h1", "h3"], ["h2", "out"]]},
        ValueError,
        "every name in turns must be one of the layers 'h1', 'h2', 'out', got 'h3'",
    ),
    "twice in turns": (
        skip_connections(),
        {"turns": [["h1", "h2"], ["h2", "out"]]},
        ValueError,
        "turns names layer 'h2' twice",
    ),
    "left out of turns": (skip_connections(), {"turns": [["h1"], ["out"]]}, ValueError, "turns leaves out layer 'h2'"),
    "features": (
        [("input", "h", L(8, 6)), TO_OUT],
        {},
        ValueError,
        r"connections\[0\] \('input' -> 'h'\) must take 7 features, got in_features=8",
    ),
    "flattened features": (
        [("input", "h", C(2, 3, 3)), ("h", "out", L(20, 4))],
        {"input_shape": (2, 6, 6)},
        ValueError,
        r"connections\[1\] \('h' -> 'out'\) must take 48 features",
    ),
    "two shapes": (
        [("input", "h", L(7, 6)), ("input", "g", L(7, 5)), ("h", "out", L(6, 4)), ("g", "out", L(5, 3))],
        {},
        ValueError,
        r"connections\[3\] \('g' -> 'out'\) gives states of shape \(3,\), but connections\[2\] .* gives \(4,\)",
    ),
    "two sizes of maps": (
        [("input", "h", C(2, 3, 3)), ("input", "h", C(2, 3, 1)), ("h", "out", L(48, 4))],
        {"input_shape": (2, 6, 6)},
        ValueError,
        r"connections\[1\] .* of shape \(3, 6, 6\), but connections\[0\] .* gives \(3, 4, 4\)",
    ),
    "maps as the output": (
        [("input", "out", C(2, 3, 3))],
        {"input_shape": (2, 6, 6)},
        ValueError,
        r"connections\[0\] .* ends at the output, so it must be an nn.Linear, got states of shape \(3, 4, 4\)",
    ),
    "flat for maps": (
        [("input", "h", C(2, 3, 3)), TO_OUT],
        {},
        ValueError,
        r"connections\[0\] .* is a Conv2d: samples",
    ),
    "channels": (
        [("input", "h", C(3, 3, 3)), ("h", "out", L(48, 4))],
        {"input_shape": (2, 6, 6)},
        ValueError,
        r"connections\[0\] .* must take 2 channels, got in_channels=3",
    ),
    "activation": (
        [("input", "h", nn.ReLU()), TO_OUT],
        {},
        TypeError,
        r"connections\[0\] .* is ReLU\(\): a connection",
    ),
    "subclass": ([("input", "out", Doubling(7, 4))], {}, TypeError, r"connections\[0\] .* is Doubling"),
    "two convolutions": (
        [("input", "h", nn.Sequential(C(2, 3, 3), C(3, 3, 3))), ("h", "out", L(12, 4))],
        {"input_shape": (2, 6, 6)},
        TypeError,
        r"connections\[0\] .* is Sequential",
    ),
    "overlapping windows": (
        [("input", "h", nn.Sequential(C(2, 3, 3), P(2, 1))), ("h", "out", L(27, 4))],
        {"input_shape": (2, 6, 6)},
        TypeError,
        r"connections\[0\] .* must pool windows side by side",
    ),
    "dilation": (
        [("input", "h", C(2, 3, 3, dilation=2)), ("h", "out", L(12, 4))],
        {"input_shape": (2, 6, 6)},
        TypeError,
        r"connections\[0\] .* must be a plain convolution",
    ),
    "hooks": (
        [("input", "h", hooked()), ("h", "out", L(12, 4))],
        {"input_shape": (2, 6, 6)},
        TypeError,
        r"connections\[0\] \('input' -> 'h'\)\[1\] has forward hooks",
    ),
    "one module twice": (
        [("input", "h", L(7, 6)), ("h", "g", SHARED), ("g", "f", SHARED), ("f", "out", L(6, 4))],
        {},
        TypeError,
        r"connections\[2\] \('g' -> 'f'\) shares parameters with connections\[1\] \('h' -> 'g'\)",
    ),
    "readout": (skip_connections(), {"readout": "softmax"}, ValueError, "readout must be None for a graph"),
    "setting": (skip_connections(), {"activation": "swish"}, ValueError, "activation must be one of .*'relu6'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_graphs_are_refused(name: str) -> None:
    connections, others, error, message = WRONG[name]
    with pytest.raises(error, match=message) as refused:
        cep.graph(connections, **{"input_shape": (7,), "output": "out", **others})
    assert "\n" not in str(refused.value)


def test_wrong_calls_are_refused() -> None:
    net = cep.graph(skip_connections(), input_shape=(7,), output="out")
    x, y = torch.rand(2, 7), torch.tensor([0, 3])
    for call, message in (
        (lambda: net(torch.rand(2, 6)), r"x must be \(B, 7\)"),
        (lambda: net(torch.rand(2, 1, 7)), r"x must be \(B, 7\)"),
        (lambda: net.relax(x, 1, target=y + 1, beta=0.1), r"in 0 \.\. 3, got 1 \.\. 4"),
        (
            lambda: net.relax(x, 1, states=net.relax(x, 1)[::-1]),
            r"states must have the shapes \[\(2, 6\), \(2, 5\), \(2, 4\)\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
