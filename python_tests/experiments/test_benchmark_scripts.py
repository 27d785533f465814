"""The scripts of benchmarks/ that run networks: they work on a few random images, and write what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import oscillations
import public_run
import pytest
import shorter_phases
import torch
import two_threads
import unsettled
from command_line import lines_of
from mnist_files import write_mnist

import ceprop_cuda as cep
from ceprop_cuda import cli
from ceprop_cuda.presets import PRESETS

Run = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script by its name with these arguments, on 30 images; returns what it prints."""
    write_mnist(tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def main(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        import_module(script).main()
        return capsys.readouterr().out

    return main


def is_image(file: str) -> bool:
    return Path(file).read_bytes().startswith(b"\x89PNG")


def units_that_switch_each_other_off(schedule: str) -> cep.Network:
    net = cep.mlp(1, 1, 1, schedule=schedule)
    with torch.no_grad():
        for p, value in zip([*net.weights, *net.biases], (5.0, -20.0, 0.0, 5.0), strict=True):
            p.fill_(value)
    return net


def test_samples_of_period_two_are_found() -> None:
    """Two units that switch each other off: both are on, both are off, and so on, where they move at once. The second
    sample holds the first one off."""
    for schedule, share in (("synchronous", 50), ("asynchronous", 0)):
        net = units_that_switch_each_other_off(schedule)
        assert oscillations.moving(net, torch.tensor([[1.0], [-1.0]]), 10) == (share, share)


def test_oscillations(run: Run) -> None:
    settings = ("--preset", "c-vf-1h", "--gate", "none", "--epochs", "2", "--threads", "1")
    run("oscillations", *settings, "--out", "o", "--data-dir", "data")
    lines = lines_of("o/oscillations-c-vf-1h.csv")
    assert [(line["schedule"], line["epoch"]) for line in lines] == [
        (schedule, epoch) for schedule in ("synchronous", "asynchronous") for epoch in ("1", "2")
    ]
    assert all(0 <= float(line["oscillating"]) <= float(line["moving"]) <= 100 for line in lines)
    assert is_image("o/oscillations-c-vf-1h.png")


def test_public_run(run: Run) -> None:
    shown = run("public_run", "--epochs", "3", "--out", "o", "--data-dir", "data")
    lines = lines_of("o/public-run.csv")
    assert [float(line["public_test"]) for line in lines] == public_run.TEST[:3]
    assert [float(line["public_train"]) for line in lines] == public_run.TRAIN[:3]
    furthest = max(abs(float(line["test"]) - float(line["public_test"])) for line in lines[1:])
    assert f"test: {float(lines[-1]['test']):.2f} %, theirs 12.34 %, at most {furthest:.2f} apart" in shown
    assert is_image("o/public-run.png")


def test_shorter_phases(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shorter_phases, "RUNS", [("c-ep-1h", 1, (0, 1))])
    shown = run("shorter_phases", "--out", "o", "--data-dir", "data")
    lines = lines_of("o/shorter_phases.csv")
    ways = shorter_phases.ways(PRESETS["c-ep-1h"])
    assert [(line["seed"], line["way"]) for line in lines] == [(seed, way) for seed in "01" for way in ways]
    assert [(line["free_steps"], line["nudged_steps"]) for line in lines[:3]] == [("40", "15"), *[("20", "8")] * 2]
    for way in ways:
        errors = ", ".join(f"{float(line['test_error']):.2f}" for line in lines if line["way"] == way)
        assert f"| c-ep-1h, 2 seeds | 1 | {way} | {errors} |" in shown


def test_training_loop(run: Run) -> None:
    shown = run("training_loop", "--rounds", "1", "--presets", "c-ep-1h", "ep-1h", "--data-dir", "data").splitlines()
    assert [line.split(":")[0] for line in shown] == ["c-ep-1h", "ep-1h", "8 networks of c-ep-1h"]


def test_other_load(run: Run) -> None:
    settings = ("--presets", "digits", "--load", "0", "1", "--rounds", "1", "--seconds", "0.05")
    shown = run("other_load", *settings).splitlines()
    assert shown[0] == "load,preset,default,1 thread,2 threads,default / better"
    assert [line.split(",")[:2] for line in shown[1:]] == [["0", "digits"], ["1", "digits"]]
    for line in shown[1:]:
        default, one, two, ratio = map(float, line.split(",")[2:])
        assert default > 0 and ratio == pytest.approx(default / max(one, two), abs=0.05)  # of rounded numbers


def test_two_threads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_threads, "STEPS", 20)
    shown = run("two_threads").splitlines()
    assert [line.split(":")[0] for line in shown] == [f"{t} threads, B = {b}" for t in (1, 2) for b in (7, 8)]


def test_steps_by_differences(run: Run) -> None:
    run("cuda_steps", "--device", "cpu", "--cases", "ep-1h-b1", "--out", "o")
    (found,) = lines_of("o/cpu_steps.csv")
    assert found["case"] == "ep-1h-b1"
    assert float(found["once_us"]) > 0 and float(found["ms"]) > 0


def test_squared_contrasts_are_those_of_the_matrices() -> None:
    x, *free = (torch.rand(3, size) for size in (5, 4, 2))
    nudged = [torch.rand_like(s) for s in free]
    found = unsettled.squared_contrasts(x, free, nudged)
    for sample in range(3):
        before, after = ([s[sample] for s in (x, *states)] for states in (free, nudged))
        matrices = [
            torch.outer(high_after, low_after) - torch.outer(high, low)
            for (low, high), (low_after, high_after) in zip(pairwise(before), pairwise(after), strict=True)
        ]
        assert found[sample].item() == pytest.approx(sum(m.square().sum().item() for m in matrices), rel=1e-5)


def test_samples_that_never_settle_make_the_contrast() -> None:
    """The network of the test above: its first sample oscillates for ever, the second has settled."""
    preset = replace(PRESETS["p-1h"], free_steps=10, nudged_steps=3)
    net = units_that_switch_each_other_off("synchronous")
    with torch.no_grad():
        found = unsettled.ends("a", net, preset, 1, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]))
    assert (found.free, found.nudged, found.oscillating) == (50, 50, 50)
    assert found.contrast_of_nudged > 99
    settled = unsettled.ends("a", net, preset, 1, torch.tensor([[-1.0]]), torch.tensor([0]))
    assert (settled.free, settled.nudged, settled.oscillating) == (0, 0, 0)


def test_unsettled(run: Run) -> None:
    for out, *options in (("a",), ("b", "--schedule", "asynchronous", "--steps", "10", "4")):
        train = ["train", "--preset", "ep-1h", "--data", "mnist", "--data-dir", "data", "--epochs", "2", "--out", out]
        assert cli.main([*train, "--threads", "1", *options]) == 0
    shown = run("unsettled", "--run", "a", "--run", "b", "--out", "o", "--data-dir", "data")
    lines = lines_of("o/unsettled.csv")
    assert [(line["preset"], line["schedule"], line["epochs"]) for line in lines] == [
        ("ep-1h", "synchronous", "2"),
        ("ep-1h", "asynchronous", "2"),
    ]
    for line in lines:
        assert f"| ep-1h | {line['schedule']} | 2 | {float(line['wrong']):.1f} % |" in shown
        assert float(line["wrong_and_nudged"]) <= min(float(line["wrong"]), float(line["nudged"])) <= 100


@pytest.mark.parametrize("preset", ["c-vf-1h", "p-conv"])
def test_unsettled_without_contrasts(preset: str, run: Run) -> None:
    train = f"train --preset {preset} --data mnist --data-dir data --epochs 1 --steps 8 3 --threads 1 --out a"
    assert cli.main(train.split()) == 0
    shown = run("unsettled", "--run", "a", "--out", "o", "--data-dir", "data")
    (line,) = lines_of("o/unsettled.csv")
    assert (line["preset"], line["contrast_of_nudged"]) == (preset, "")
    assert shown.splitlines()[-1].endswith(" % |  |")
