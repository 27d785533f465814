"""The scripts of benchmarks/ that run networks: they work on a few random images, and write what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import earlier_rule
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
    run("oscillations", "--preset", "c-vf-1h", "--epochs", "2", "--threads", "1", "--out", "o", "--data-dir", "data")
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
    shown = run("training_loop", "--rounds", "1", "--data-dir", "data").splitlines()
    assert [line.split(":")[0] for line in shown] == ["c-ep-1h", "ep-1h", "c-ep-2h", "ep-2h"]


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


def test_the_earlier_rule_is_what_its_code_does_step_by_step() -> None:
    """Against a loop that forms every product anew, with the weights that each step leaves."""
    net = cep.mlp(5, 4, 3, 2, feedback="free").double()
    rule = earlier_rule.EarlierCVF(net, 6, 3, 0.4, lr=(0.3, 0.2, 0.1))
    x, y = torch.rand(7, 5, dtype=torch.float64), torch.nn.functional.one_hot(torch.arange(7) % 2).double()
    (w1, w2, w3), (b1, b2, b3), (v2, v3) = (
        [p.detach().clone() for p in parameters] for parameters in (net.weights, net.biases, net.feedback[1:])
    )

    def slope(drive: torch.Tensor) -> torch.Tensor:
        drive = drive.detach().requires_grad_()
        return torch.autograd.grad(torch.sigmoid(4 * drive - 2).sum(), drive)[0]

    h1, h2, out = net.relax(x, 6)
    for _ in range(3):
        up1, up2, up3 = x @ w1.T + b1, h1 @ w2.T + b2, h2 @ w3.T + b3
        down1, down2 = h2 @ v2, out @ v3
        new1, new2 = torch.sigmoid(4 * (up1 + down1) - 2), torch.sigmoid(4 * (up2 + down2) - 2)
        d1, d2, d3 = new1 - h1, new2 - h2, torch.sigmoid(4 * up3 - 2) + 0.4 * (y - out) - out
        scale = 1 / (0.4 * 7)
        w1 += 0.3 * scale * (slope(up1) * d1).T @ x
        w2 += 0.2 * scale * (slope(up2) * d2).T @ h1
        w3 += 0.1 * scale * (slope(up3) * d3).T @ h2
        b2 += 0.2 * scale * (slope(up2) * d2).sum(0)
        b3 += 0.1 * scale * (slope(up3) * d3).sum(0)
        v2 += 0.2 * scale * h2.T @ (slope(down1) * d1)
        v3 += 0.1 * scale * out.T @ (slope(down2) * d2)
        h1, h2, out = new1, new2, out + d3
    result = rule.step(x, y)
    for found, wanted in zip(
        [*net.weights, *net.biases, *net.feedback[1:], *result.nudged_states],
        [w1, w2, w3, b1, b2, b3, v2, v3, h1, h2, out],
        strict=True,
    ):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_earlier_rule(run: Run) -> None:
    arguments = ("--preset", "c-vf-1h", "--data-dir", "data", "--out", "o")
    assert "after 1 epochs test error" in run("earlier_rule", *arguments, "--epochs", "1")
    shown = run("earlier_rule", *arguments, "--epochs", "2", "--resume")
    metrics = [json.loads(line) for line in Path("o/metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in metrics] == [1, 2]
    assert f"after 2 epochs test error {metrics[-1]['test_error']:.2f} %" in shown
    assert is_image("o/curves.png")


def test_earlier_rule_with_other_settings(run: Run) -> None:
    settings = ("--lr", "0.1", "0.2", "--beta", "0.3")
    run("earlier_rule", "--preset", "c-vf-1h", "--epochs", "1", "--data-dir", "data", "--out", "o", *settings)
    rule = json.loads(Path("o/config.json").read_text())["rule"]
    assert (rule["lr"], rule["beta"]) == ([0.1, 0.2], 0.3)
