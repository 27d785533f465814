"""What lies just outside of what is taken, and just inside: batches without samples, geometry, files of others."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_arguments import arguments_of_chain
from small_network import SIZES, network
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda import cli
from ceprop_cuda.run_directory import read_checkpoint

# --- Batches without samples

CALLS: dict[str, Callable[[cep.Network, Tensor, Tensor, str], object]] = {
    "relax": lambda net, x, y, backend: net.relax(x, 3, backend=backend),
    "nudged relax": lambda net, x, y, backend: net.relax(x, 3, target=y, beta=0.1, backend=backend),
    "EP": lambda net, x, y, backend: cep.EP(net, 3, 2, 0.1, backend=backend).backward(x, y),
    "CEP": lambda net, x, y, backend: cep.CEP(net, 3, 2, 0.1, 0.1, backend=backend).step(x, y),
    "BPTT": lambda net, x, y, backend: cep.BPTT(net, 3, 2, backend=backend).backward(x, y),
    "predict": lambda net, x, y, backend: cep.EP(net, 3, 2, 0.1, backend=backend).predict(x, y),
}


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_batch_without_samples_is_refused(kind: str, call: str, backend: str) -> None:
    net = network() if kind == "dense" else cep.convnet((1, 6, 6), (2,), 3, fc=(3,)).double()
    shape = SIZES[:1] if kind == "dense" else (1, 6, 6)
    before = {key: p.clone() for key, p in net.state_dict().items()}
    x, y = torch.empty(0, *shape, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x must be \(B, .*\) with B >= 1, got \(0, "):
        CALLS[call](net, x, y, backend)
    assert all(torch.equal(p, before[key]) for key, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# --- The geometry of convolutions

MOST = 2**15 - 1


@pytest.mark.parametrize("op", ["relax", "ep_step", "cep_step"])
@pytest.mark.parametrize(("name", "least"), [("strides", 1), ("paddings", 0), ("windows", 1)])
@pytest.mark.parametrize("number", [MOST + 1, 2**31, 2**62, -(2**63)])
def test_numbers_of_a_convolution_have_bounds(op: str, name: str, least: int, number: int) -> None:
    """Beyond them sizes of maps would overflow, or whole memories be asked for."""
    given, settings = arguments_of_chain(op)
    for index in range(4):
        numbers = list(settings[name])
        numbers[index] = number
        message = rf"{name}\[{index}\] must lie in {least} .. {MOST}, got {number}"
        with pytest.raises(ValueError, match=message):
            getattr(torch.ops.ceprop_cuda, op)(*given, **settings | {name: numbers})


def relaxed(**made: list[int]) -> Tensor:
    """The map above a sum over a 1x1 kernel, of an image 1 x 1 of one 1."""
    settings: dict[str, Any] = arguments_of_chain("relax")[1] | {"steps": 1, "feedback": "tied", "activation": "linear"}
    settings |= {"output_activation": "linear", "dynamics": "prototypical", "readout": False, "pools": "m"}
    settings |= {"schedule": "synchronous", "strides": [1, 1], "paddings": [0, 0], "windows": [1, 1], **made}
    sides = [(1 + 2 * p - 1) // s + 1 for p, s in zip(settings["paddings"], settings["strides"], strict=True)]
    places = sides[0] // settings["windows"][0] * (sides[1] // settings["windows"][1])
    weights, none = [torch.ones(1, 1, 1, 1), torch.ones(1, places)], torch.empty(0)
    states, _ = torch.ops.ceprop_cuda.relax(torch.ones(1, 1, 1, 1), weights, [none, none], [], [], None, **settings)
    return states[0][0, 0]


def test_the_largest_numbers_of_a_convolution_are_taken() -> None:
    assert relaxed(strides=[MOST, MOST], paddings=[0, MOST]).tolist() == [[0, 1, 0]]
    row = relaxed(paddings=[0, MOST])
    assert (row.shape, row.sum().item(), row[0, MOST].item()) == ((1, 2 * MOST + 1), 1, 1)
    assert relaxed(paddings=[0, MOST], windows=[1, MOST]).tolist() == [[0, 1]]
    # 255 x 257 places are the most of a window, 256 x 256 are one more.
    assert relaxed(paddings=[127, 128], windows=[255, 257]).tolist() == [[1]]
    with pytest.raises(ValueError, match="windows must have at most 65535 places, got 256 x 256"):
        relaxed(paddings=[128, 128], windows=[256, 256])


# --- Files that somebody else may have made


class Intruder:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.folder,)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, made = tmp_path / "run", tmp_path / "made by the checkpoint"
    out.mkdir()
    cep_trainer = cep.Trainer(cep.CEP(network(), 3, 2, 0.1, 0.1))
    torch.save({"history": [], "config": {"preset": "digits"}, "network": Intruder(made)}, out / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
        read_checkpoint(out)
    batches = [(torch.rand(3, SIZES[0], dtype=torch.float64), torch.tensor([0, 1, 2]))]
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
        cep_trainer.fit(batches, 1, out=out, resume=True, progress=False)
    for command in (["eval", "--run", str(out)], ["train", "--resume", "--out", str(out)]):
        assert cli.main(command) == 2
        assert "checkpoint.pt cannot be read" in capsys.readouterr().err
    assert not made.exists()
    (out / "checkpoint.pt").write_bytes(pickle.dumps(Intruder(made)))  # without torch's archive around it
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
        read_checkpoint(out)
    assert not made.exists()
    pickle.loads(pickle.dumps(Intruder(made)))
    assert made.exists()  # what all that would have run
