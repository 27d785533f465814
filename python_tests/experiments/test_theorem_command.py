"""``ceprop theorem``: its cases, what it prints and writes, and its errors."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_sets import write_cifar
from mnist_files import write_mnist

from ceprop_cuda import CEP, EP, cli, environment
from ceprop_cuda.data import load
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.theorem.cases import CASES, enlarged

# Sizes, T, K, beta, samples in a batch, activation, dynamics.
PUBLISHED = {
    "toy": ((5, 50, 10), 800, 80, 0.001, 1, "tanh", "energy"),
    "eb-1h": ((784, 512, 10), 800, 80, 0.001, 20, "tanh", "energy"),
    "eb-2h": ((784, 512, 512, 10), 5000, 150, 0.01, 20, "tanh", "energy"),
    "p-1h": ((784, 512, 10), 150, 10, 0.01, 20, "tanh", "prototypical"),
    "p-2h": ((784, 512, 512, 10), 1500, 40, 0.01, 1, "tanh", "prototypical"),
    "p-3h": ((784, 512, 512, 512, 10), 5000, 40, 0.015, 1, "tanh", "prototypical"),
    "p-conv": ((1, 32, 64, 10), 5000, 10, 0.02, 1, "hard_sigmoid", "prototypical"),
    **{name: ((784, 512, 10), 150, 10, 0.01, 1, "tanh", "prototypical") for name in ("c-ep", "c-vf-0", "c-vf-45")},
    **{name: ((784, 512, 10), 800, 80, 0.005, 1, "tanh", "energy") for name in ("eb-c-ep", "eb-c-vf-0", "eb-c-vf-45")},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "commit", lambda: "abc")  # which calls git


def rows_of(out: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The facts and the lines of a table."""
    lines = Path(out, "theorem.csv").read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_cases() -> None:
    assert set(CASES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_the_cases(name: str) -> None:
    sizes, free_steps, nudged_steps, beta, batch, activation, dynamics = PUBLISHED[name]
    case = CASES[name]
    net = case.network(10)
    rule = case.rule(net)
    weights = net.weights
    assert (weights[0].shape[1], *(w.shape[0] for w in weights)) == sizes
    assert weights[0].dtype == torch.float64
    assert (rule.free_steps, rule.nudged_steps, rule.beta, case.batch) == (free_steps, nudged_steps, beta, batch)
    d = net.dynamics
    assert (d.activation, d.output_activation, d.kind) == (activation, activation, dynamics)
    assert (rule.nudging, rule.nudge_at, rule.loss) == ("positive", "state", "mse")
    if dynamics == "energy":
        assert (d.dt, d.clip) == (0.08, False)
    if "c-" in name:
        assert isinstance(rule, CEP)
        assert rule.lr == (2e-5, 2e-5)
    else:
        assert isinstance(rule, EP)
    assert (net.free_feedback is not None) == ("vf" in name)
    if "vf" in name:
        assert net.angles()[0] == pytest.approx(float(name.rsplit("-", 1)[1]), abs=3)


def test_smaller_images_are_enlarged() -> None:
    x = load("digits").train_x[:3]
    large = enlarged(x)
    assert large.shape == (3, 1, 28, 28)
    assert large.min() >= 0 and large.max() <= 1
    assert torch.allclose(large.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=0.02)
    assert enlarged(large) is large


def test_table_figures_and_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["theorem", "--case", "p-1h"]) == 0
    shown = capsys.readouterr().out
    out = Path("theorem/p-1h")
    assert sorted(path.name for path in out.iterdir()) == ["courses.png", "errors.png", "theorem.csv", "updates.npz"]
    for figure in out.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    facts, rows = rows_of("theorem/p-1h")
    assert (facts["case"], facts["data"], facts["free_steps"], facts["nudged_steps"]) == ("p-1h", "digits", "150", "10")
    assert (facts["beta"], facts["lr"], facts["batch"], facts["seed"]) == ("0.01", "", "20", "0")
    assert (facts["commit"], facts["torch"]) == ("abc", torch.__version__)
    assert float(facts["moved"]) < 1e-12
    assert [row["quantity"] for row in rows] == ["s[0]", "s[1]", "W[0]", "W[1]", "b[0]", "b[1]", "all parameters"]
    for row in rows[:-1]:
        assert 0 < float(row["rmse"]) < 0.3
        assert float(row["sign_agreement"]) > 0.9
        assert float(row["sign_disagreement"]) < 0.2
        assert f"| {row['quantity']:<14} | {float(row['rmse']):.3g} " in shown
    assert 0 < float(rows[-1]["angle"]) < 10
    assert "results in theorem/p-1h" in shown
    with np.load(out / "updates.npz") as arrays:
        assert arrays["W[0].updates"].shape == arrays["W[0].descents"].shape == (10, 100)
        assert arrays["W[0].rmse"].shape == arrays["W[0].summed_updates"].shape == (512, 784)
        assert arrays["s[1].updates"].shape == (10, 10)
        assert float(np.nanmean(arrays["W[0].rmse"])) == pytest.approx(float(rows[2]["rmse"]), rel=1e-4)


def test_several_batches_and_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        options = ["--steps", "500", "20", "--batches", "3", "--seed", seed]
        assert cli.main(["theorem", "--case", "toy", *options, "--out", out]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\| W\[0\] +\| \d\.\d+ \+- \d", shown)
    facts, rows = rows_of("a")
    assert (facts["data"], facts["free_steps"], facts["nudged_steps"]) == ("random", "500", "20")
    assert [row["batch"] for row in rows] == ["1"] * 7 + ["2"] * 7 + ["3"] * 7
    assert len({row["angle"] for row in rows if row["quantity"] == "all parameters"}) == 3
    assert rows == rows_of("b")[1] != rows_of("c")[1]


def test_continual_vector_fields(capsys: pytest.CaptureFixture[str]) -> None:
    angles = {}
    for name in ("c-ep", "c-vf-0", "c-vf-45"):
        assert cli.main(["theorem", "--case", name, "--out", name]) == 0
        facts, rows = rows_of(name)
        assert facts["lr"] == "2e-05 2e-05"
        assert [row["quantity"] for row in rows if row["quantity"][0] == "V"] == (["V[1]"] if "vf" in name else [])
        angles[name] = float(rows[-1]["angle"])
    # The weights that move meanwhile add lr |x|^2 / beta, about a fifth, to what a step does to a hidden unit.
    assert angles["c-ep"] < 15
    assert angles["c-vf-0"] < 15
    assert angles["c-vf-45"] > angles["c-vf-0"] + 10


def test_images_of_another_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "data")  # where data is looked for by default
    options = ["--case", "p-conv", "--data", "mnist", "--steps", "12", "3", "--batch", "2", "--beta", "0.1"]
    assert cli.main(["theorem", *options, "--backend", "reference"]) == 0
    facts, rows = rows_of("theorem/p-conv")
    assert (facts["data"], facts["batch"], facts["beta"]) == ("mnist", "2", "0.1")
    assert len(rows) == 3 + 3 + 3 + 1


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "digits", "--batches", "2", "--batch", "10", "--steps", "60", "8", "--beta", "0.01"]
    angles = {}
    for name in ("ep-1h", "c-vf-1h"):
        assert cli.main(["theorem", "--preset", name, *options]) == 0
        facts, rows = rows_of(f"theorem/{name}")
        assert (facts["preset"], facts["data"], facts["source"]) == (name, "digits", PRESETS[name].source)
        assert (facts["free_steps"], facts["nudged_steps"], facts["beta"], facts["batch"]) == ("60", "8", "0.01", "10")
        assert facts["lr"] == ("" if name == "ep-1h" else "0.0076 0.0038")
        assert len({row["angle"] for row in rows if row["quantity"] == "all parameters"}) == 2
        angles[name] = float(rows[-1]["angle"])
    assert angles["ep-1h"] < 30
    assert cli.main(["theorem", "--preset", "digits"]) == 2
    assert "rule must not have nudging='symmetric'" in capsys.readouterr().err


def test_colour_images_fit_presets_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "data", monkeypatch, "cifar10")
    assert cli.main(["theorem", "--case", "p-1h", "--data", "cifar10"]) == 2
    assert "the cases take grey images, those of cifar10 have colours" in capsys.readouterr().err
    options = ["--data", "cifar10", "--steps", "9", "2", "--batch", "2"]
    assert cli.main(["theorem", "--preset", "ep-1h", *options]) == 0
    assert rows_of("theorem/ep-1h")[0]["data"] == "cifar10"


def test_a_free_phase_that_has_not_settled_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(["theorem", "--case", "toy", "--steps", "12", "4"]) == 0
    assert "the free phase has not settled: a unit still moves by" in caplog.text
    caplog.clear()
    assert cli.main(["theorem", "--case", "toy", "--steps", "2000", "4"]) == 0
    assert "settled" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "5", "6"], "got free_steps=5 and nudged_steps=6"),
        (["--steps", "5", "0"], "nudged_steps must be an int >= 1, got 0"),
        (["--beta", "0"], "beta must be a finite number other than 0, got 0.0"),
        (["--batches", "0"], "--batches must be an int >= 1, got 0"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "cifar10 is not in nowhere"),
        (["--threads", "0"], "--threads must be an int >= 1, got 0"),
        (["--batch", "-1"], "--batch must be an int >= 1, got -1"),
        (["--data", "mnist", "--data-dir", "nowhere"], "mnist is not in nowhere/MNIST/raw"),
    ],
)
def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert cli.main(["theorem", "--case", "p-1h", *options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("ceprop: ") and message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not Path("theorem").exists()


def test_an_unknown_case_shows_usage_and_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    for options, status, message in ((["--case", "p-9h"], 2, "invalid choice: 'p-9h'"), (["--help"], 0, "C-VF")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["theorem", *options])
        assert ended.value.code == status
        shown = capsys.readouterr()
        assert message in shown.err + shown.out
    for name, case in CASES.items():
        assert f"  {name:<11}{case.source}" in shown.out
