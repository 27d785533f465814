"""README.md's Python blocks run, and do what the text around them says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import relative_error
from project import ROOT

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import chain
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, Nudge

README = ROOT / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_is_tested() -> None:
    assert len(blocks()) == 3


def test_the_plain_lines_are_a_step_of_the_reference() -> None:
    batch, inputs, hidden, classes, beta, lr = 4, 20, 512, 10, 0.4, (0.3, 0.2)  # 512 and 10 are written out there
    draw = {"dtype": torch.float64}
    x = torch.rand(batch, inputs, **draw)
    y = F.one_hot(torch.arange(batch), classes).double()
    weights = [0.1 * torch.randn(hidden, inputs, **draw), 0.03 * torch.randn(classes, hidden, **draw)]
    names = {"B": batch, "T": 12, "K": 6, "beta": beta, "lr0": lr[0], "lr1": lr[1], "x": x, "y": y, "torch": torch}
    names |= {"W0": weights[0].clone(), "W1": weights[1].clone()}

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of the states, which the lines make themselves
    try:
        exec(blocks()[0], names)
    finally:
        torch.set_default_dtype(default)

    circuit = Circuit(weights, [None, None], None, Dynamics(), chain(2))
    nudge = Nudge(y, beta)
    expected = reference.cep_step(circuit, x, nudge, free_steps=12, nudged_steps=6, lr=lr).circuit.weights
    for before, after, plain in zip(weights, expected, (names["W0"], names["W1"]), strict=True):
        assert relative_error(plain, after) < 1e-12
        assert relative_error(plain - before, after - before) < 1e-12
        assert relative_error(after, before) > 1e-3  # a step that could be seen


def test_the_blocks_of_use_and_graphs_learn_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(blocks()[1], names)
    printed = re.fullmatch(r"(.+) % test error\n", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) == names["history"][-1]["test_error"] < 10

    exec(blocks()[2], names)  # goes on with what the block before it has made
    printed = re.fullmatch(r"\['h1', 'h2', 'out'\] (.+) % test error\n", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) == names["history"][-1]["test_error"] < 15
