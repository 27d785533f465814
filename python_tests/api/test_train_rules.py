"""``ceprop train`` by BPTT, and with free feedback at an angle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import QUICK, assert_refused, config_of, metrics_of
from mnist_files import write_mnist

from ceprop_cuda import cli
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.run_directory import read_checkpoint


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_training_by_bptt(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rule", "bptt", "--steps", "12", "5", "--lr", "0.04", "0.02"]
    assert cli.main([*QUICK, *options, "--epochs", "1"]) == 0
    run = "runs/digits-bptt-digits-0"
    config = config_of(run)
    assert config["bptt"] is True
    rule = config["rule"]
    assert (rule["name"], rule["free_steps"], rule["unrolled_steps"], rule["loss"]) == ("BPTT", 12, 5, "mse")
    assert metrics_of(run)[0]["steps"] == [12]
    assert cli.main(["train", "--resume", "--out", run, "--epochs", "2", "--threads", "1"]) == 0
    assert cli.main(["train", "--resume", "--out", run, "--rule", "bptt"]) == 0
    assert cli.main([*QUICK, *options, "--epochs", "2", "--out", "b"]) == 0
    assert metrics_of(run) == metrics_of("b")
    assert metrics_of(run)[1]["test_error"] < 30
    capsys.readouterr()
    assert cli.main(["eval", "--run", run]) == 0
    shown = capsys.readouterr().out
    assert f"test error {metrics_of(run)[1]['test_error']:.2f} %" in shown
    assert "after 2 epochs of digits by BPTT" in shown

    assert cli.main([*QUICK, "--epochs", "1", "--out", "a"]) == 0
    resumed = ["train", "--resume", "--out", "a", "--rule", "bptt"]
    assert_refused(capsys, resumed, "--rule bptt contradicts the run in a, which learns by its preset's rule")
    for option in (["--tolerance", "0.001"], ["--nudging", "symmetric"], ["--beta", "0.1"]):
        message = f"{' '.join(option)} is not for --rule bptt, the exact gradient through --steps T K"
        assert_refused(capsys, [*QUICK, *options, *option, "--out", "c"], message)
    assert_refused(capsys, [*QUICK, "--rule", "bptt", "--steps", "5", "6", "--out", "c"], "at most free_steps=5, got 6")
    assert not Path("c").exists()


def test_bptt_has_no_use_for_a_presets_tolerance(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data", train=8, test=4)
    options = ["--preset", "ep-conv", "--rule", "bptt", "--steps", "3", "2", "--batch", "4", "--epochs", "1"]
    assert cli.main([*QUICK, *options, "--out", "a"]) == 0
    assert config_of("a")["tolerance"] is None
    assert metrics_of("a")[0]["steps"] == [3]


def test_the_angle_of_free_feedback(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*QUICK, "--preset", "c-vf-1h", "--data", "digits", "--epochs", "1"]
    assert cli.main([*options, "--angle", "90", "--lr", "0", "0", "--out", "a"]) == 0
    assert config_of("a")["angle"] == 90
    net = PRESETS["c-vf-1h"].network(64, 10)
    net.load_state_dict(read_checkpoint("a")["network"])
    assert net.angles()[0] == pytest.approx(90, abs=5)
    assert cli.main(["train", "--resume", "--out", "a", "--angle", "90"]) == 0
    assert_refused(capsys, ["train", "--resume", "--out", "a", "--angle", "0"], "--angle 0.0 contradicts the run in a")
    assert_refused(capsys, [*options, "--angle", "181"], "--angle must be a number of degrees in [0, 180], got 181.0")
    assert_refused(capsys, ["train", "--angle", "9"], "--angle needs a preset with free feedback, digits has tied")
