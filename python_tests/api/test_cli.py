"""The command line, end to end in processes of its own, and its errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from colour_sets import write_cifar
from command_line import ENVIRONMENT, QUICK, assert_refused, ceprop, config_of, kept_of, metrics_of
from mnist_files import write_mnist

import ceprop_cuda
from ceprop_cuda import CEP, Trainer, cli, data, mlp, ops
from ceprop_cuda.presets import PRESETS, Convolutions
from ceprop_cuda.run_directory import read_checkpoint


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------------
# In processes of their own


def test_train_and_eval_end_to_end() -> None:
    trained = ceprop("train", "--epochs", "2")
    assert trained.returncode == 0, trained.stderr
    run = "runs/digits-digits-0"
    error = metrics_of(run)[-1]["test_error"]
    assert f"test error {error:.2f} % after 2 epochs, run directory {run}" in trained.stdout
    assert error < 30
    assert sorted(os.listdir(run)) == ["checkpoint.pt", "config.json", "curves.png", "metrics.jsonl"]
    evaluated = ceprop("eval", "--run", run)
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"test error {error:.2f} %, loss 0." in evaluated.stdout
    assert "on digits after 2 epochs of digits" in evaluated.stdout


def test_an_interrupt_keeps_the_last_epoch_and_says_how_to_resume() -> None:
    command = [sys.executable, "-m", "ceprop_cuda", *QUICK, "--epochs", "500", "--out", "a"]
    # Where the tests themselves run in the background of a shell, it has told them to ignore this signal.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        try:
            deadline = time.monotonic() + 60
            while not (Path("a/metrics.jsonl").exists() and metrics_of("a")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, shown = process.communicate(timeout=30)
        finally:
            process.kill()
    kept = len(kept_of("a"))
    assert process.returncode == 130
    assert shown.splitlines()[-1].startswith(f"ceprop: interrupted; {kept} finished epochs are kept")
    assert "ceprop train --resume --out a" in shown
    assert "Traceback" not in shown

    assert cli.main(["train", "--resume", "--out", "a", "--epochs", str(kept + 1), "--threads", "1"]) == 0
    assert cli.main([*QUICK, "--epochs", str(kept + 1), "--out", "b"]) == 0
    assert metrics_of("a") == metrics_of("b")


def test_the_process_ends_with_the_status() -> None:
    ended = ceprop("eval", "--run", "nowhere")
    assert ended.returncode == 2
    assert ended.stderr == "ceprop: there is no run in nowhere: no checkpoint.pt\n"
    assert ended.stdout == ""


# ---------------------------------------------------------------------------------------------------------------
# In this process


def test_settings_of_a_run(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    options = ["--preset", "c-vf-1h", "--data-dir", str(tmp_path), "--epochs", "1", "--seed", "3", "--lr", "0.2", "0.1"]
    options += ["--batch", "25", "--steps", "12", "6", "--schedule", "asynchronous", "--tolerance", "1e-3"]
    options += ["--nudging", "symmetric", "--beta", "0.3", "--device", "cpu"]
    assert cli.main([*QUICK, *options, "--threads", "3"]) == 0
    config = config_of("runs/c-vf-1h-mnist-3")
    del config["versions"]
    rule = config.pop("rule")
    assert (rule["name"], rule["lr"], rule["beta"], rule["nudging"]) == ("CEP", [0.2, 0.1], 0.3, "symmetric")
    assert (rule["free_steps"], rule["nudged_steps"], rule["tolerance"]) == (12, 6, 1e-3)
    assert "schedule='asynchronous'" in rule["network"]
    assert config == {
        "preset": "c-vf-1h",
        "bptt": False,
        "data": "mnist",
        "data_dir": str(tmp_path),
        "seed": 3,
        "backend": "reference",
        "batch": 25,
        "lr": [0.2, 0.1],
        "steps": [12, 6],
        "angle": 0.0,
        "beta": 0.3,
        "nudging": "symmetric",
        "schedule": "asynchronous",
        "tolerance": 1e-3,
        "gate": "connection",
        "device": "cpu",
        "epochs": 1,
    }
    free_steps, *nudged_steps = metrics_of("runs/c-vf-1h-mnist-3")[0]["steps"]
    assert 4 <= free_steps <= 12
    assert len(nudged_steps) == 3  # with +beta, the way back, with -beta
    assert all(4 <= steps <= 6 for steps in nudged_steps)
    assert torch.get_num_threads() == 3
    orders = torch.Generator().manual_seed(3)
    torch.randperm(30, generator=orders)  # that of the only epoch
    assert torch.equal(read_checkpoint("runs/c-vf-1h-mnist-3")["train_batches"]["generator"], orders.get_state())


def test_defaults_come_from_the_preset(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")  # where data is looked for by default
    assert cli.main([*QUICK, "--preset", "p-1h", "--epochs", "1"]) == 0
    config = config_of("runs/p-1h-mnist-0")
    assert config["lr"] == list(PRESETS["p-1h"].lr)
    assert (config["steps"], config["schedule"], config["tolerance"]) == ([40, 15], "synchronous", None)
    assert (config["beta"], config["nudging"], config["device"]) == (PRESETS["p-1h"].beta, "positive", "cpu")
    assert metrics_of("runs/p-1h-mnist-0")[0]["steps"] == [40, 15]
    assert config["data_dir"] == str(tmp_path / "data")


def test_the_seed_decides_the_run_and_a_second_run_gets_a_folder_of_its_own() -> None:
    for seed in ("0", "0", "1"):
        assert cli.main([*QUICK, "--epochs", "1", "--seed", seed]) == 0
    assert sorted(os.listdir("runs")) == ["digits-digits-0", "digits-digits-0-2", "digits-digits-1"]
    assert metrics_of("runs/digits-digits-0") == metrics_of("runs/digits-digits-0-2")
    assert metrics_of("runs/digits-digits-0") != metrics_of("runs/digits-digits-1")


def test_resume_takes_the_settings_of_the_run_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", "a"]
    assert cli.main([*QUICK, "--epochs", "1", "--seed", "4", *out]) == 0
    resume = ["train", "--resume", *out]
    assert_refused(capsys, ["train", "--resume"], "--resume needs --out DIR")
    assert_refused(capsys, [*resume, "--seed", "5"], "--seed 5 contradicts the run in a, which has 4")
    assert_refused(capsys, [*resume, "--preset", "p-1h"], "--preset p-1h contradicts the run in a, which has digits")
    assert_refused(capsys, [*resume, "--data", "mnist"], "--data mnist contradicts the run in a, which has digits")
    assert_refused(capsys, [*resume, "--backend", "auto"], "--backend auto contradicts")
    assert_refused(capsys, [*resume, "--batch", "9"], "--batch 9 contradicts the run in a, which has 10")
    assert_refused(capsys, [*resume, "--lr", "1", "2"], "--lr [1.0, 2.0] contradicts")
    assert_refused(capsys, [*resume, "--steps", "20", "9"], "--steps [20, 9] contradicts the run in a, which has [20, ")
    assert_refused(
        capsys, [*resume, "--schedule", "asynchronous"], "asynchronous contradicts the run in a, which has s"
    )
    assert_refused(capsys, [*resume, "--tolerance", "0"], "--tolerance 0.0 contradicts the run in a, which has None")
    assert_refused(capsys, [*resume, "--beta", "9"], "--beta 9.0 contradicts the run in a, which has ")
    assert_refused(capsys, [*resume, "--device", "cuda"], "--device cuda contradicts the run in a, which has cpu")
    assert_refused(capsys, [*QUICK, *out], "a holds a run already (checkpoint.pt): go on with it by")
    assert len(metrics_of("a")) == 1
    assert cli.main([*resume, "--seed", "4", "--epochs", "2", "--threads", "1"]) == 0
    assert cli.main([*QUICK, "--epochs", "2", "--seed", "4", "--out", "b"]) == 0
    assert metrics_of("a") == metrics_of("b")
    assert config_of("a")["backend"] == "reference"
    assert cli.main(resume) == 0  # to the planned number of epochs, which is reached
    assert len(metrics_of("a")) == 2
    assert_refused(capsys, [*resume, "--epochs", "1"], "epochs=1, but the run to resume has finished 2")


def test_a_run_resumes_with_its_schedule_steps_and_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "10", "5", "--schedule", "asynchronous", "--tolerance", "1e-3"]
    assert cli.main([*QUICK, *options, "--epochs", "1", "--out", "a"]) == 0
    assert cli.main(["train", "--resume", "--out", "a", *options, "--epochs", "2", "--threads", "1"]) == 0
    assert cli.main([*QUICK, *options, "--epochs", "2", "--out", "b"]) == 0
    assert metrics_of("a") == metrics_of("b")
    capsys.readouterr()
    assert cli.main(["eval", "--run", "a"]) == 0
    assert f"test error {metrics_of('a')[-1]['test_error']:.2f} %" in capsys.readouterr().out


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert_refused(capsys, ["train", "--preset", "p-1h"], f"mnist is not in {Path('data').absolute()}/MNIST/raw")
    assert_refused(capsys, ["train", "--preset", "p-1h", "--data-dir", "elsewhere"], "mnist is not in elsewhere/MNIST")
    assert_refused(capsys, ["train", "--lr", "1"], "--lr takes 2 rates for digits, got 1")
    assert_refused(capsys, ["train", "--lr", "1", "-2"], "lr[1] must be a finite number >= 0, got -2.0")
    assert_refused(capsys, ["train", "--lr", "nan", "1"], "lr[0] must be a finite number >= 0, got nan")
    assert_refused(capsys, ["train", "--steps", "-1", "5"], "free_steps must be an int >= 0, got -1")
    assert_refused(capsys, ["train", "--steps", "5", "0"], "nudged_steps must be an int >= 1, got 0")
    assert_refused(capsys, ["train", "--tolerance", "-1"], "tolerance must be None or a finite number >= 0, got -1.0")
    assert_refused(capsys, ["train", "--tolerance", "nan"], "tolerance must be None or a finite number >= 0, got nan")
    assert_refused(capsys, ["train", "--resume", "--out", "nowhere"], "there is no run in nowhere")
    assert_refused(capsys, ["eval", "--run", "nowhere"], "there is no run in nowhere")
    Path("occupied").write_text("a file")
    assert_refused(capsys, ["train", "--out", "occupied"], "occupied")
    assert not Path("runs").exists()


def test_unknown_choices_and_commands_show_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["train", "--preset", "ep-9h"], "invalid choice: 'ep-9h'"),
        (["train", "--data", "cifar"], "invalid choice: 'cifar'"),
        (["train", "--schedule", "random"], "invalid choice: 'random'"),
        (["train", "--nudging", "negative"], "invalid choice: 'negative'"),
        (["train", "--steps", "5"], "argument --steps: expected 2 arguments"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_are_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--epochs", "--batch", "--threads"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", option, value])
        assert ended.value.code == 2
        assert f"argument {option}" in capsys.readouterr().err


def test_divergence_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*QUICK, "--out", "a", "--epochs", "2", "--lr", "1e4", "1e4"]
    assert_refused(capsys, options, "epoch 1, batch", status=1)
    assert metrics_of("a") == []
    assert cli.main([*QUICK, "--out", "a", "--epochs", "1"]) == 0  # its folder is free for a better try
    assert len(metrics_of("a")) == 1
    assert config_of("a")["lr"] == list(PRESETS["digits"].lr)


def test_a_fused_backend_that_cannot_run_is_one_line_and_other_runtime_errors_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--backend", "fused", "--epochs", "1"]
    monkeypatch.setattr(ops, "obstacle", lambda *_: "the kernels are on strike")
    assert_refused(capsys, train, "backend='fused' cannot run this: the kernels are on strike; use backend='auto'")

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ops, "obstacle", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.main(train)


@pytest.mark.parametrize("arguments", [("train", "--out", "b"), ("eval", "--run", "a")])
def test_a_device_that_is_not_there_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main([*QUICK, "--epochs", "1", "--out", "a"]) == 0
    assert_refused(capsys, [*arguments, "--device", "tpu"], "--device must be one of 'cpu', 'cuda'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(capsys, [*arguments, "--device", "cuda:1"], "--device cuda:1: torch sees no CUDA GPU")
    assert not Path("b").exists()


def test_runs_of_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(4, 3)
    Trainer(CEP(mlp(3, 2), 2, 2, 0.1, 0.1)).fit([(x, torch.zeros(4).long())], 1, out="a", progress=False)
    for command in (["eval", "--run", "a"], ["train", "--resume", "--out", "a"]):
        assert_refused(capsys, command, "the run in a was not made by `ceprop train`")


def test_a_run_of_a_version_with_other_settings_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, "--epochs", "1", "--out", "a"]) == 0
    checkpoint = read_checkpoint("a")
    del checkpoint["config"]["batch"], checkpoint["config"]["schedule"]
    torch.save(checkpoint, "a/checkpoint.pt")
    for command in (["eval", "--run", "a"], ["train", "--resume", "--out", "a"]):
        assert_refused(capsys, command, "made by another version: its config.json has no batch, schedule")


def test_eval_finds_moved_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_mnist(tmp_path / "old")
    assert cli.main([*QUICK, "--preset", "c-ep-1h", "--epochs", "1", "--data-dir", "old", "--out", "a"]) == 0
    (tmp_path / "old").rename(tmp_path / "new")
    assert_refused(capsys, ["eval", "--run", "a"], f"mnist is not in {tmp_path}/old/MNIST/raw")
    assert cli.main(["eval", "--run", "a", "--data-dir", "new"]) == 0
    assert f"test error {metrics_of('a')[0]['test_error']:.2f} %" in capsys.readouterr().out


def test_info_tells_versions_build_and_devices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "build_info", lambda: {"compiler": "some 1.2", "kernels": "a, b"})
    assert cli.main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["ceprop_cuda"] == ceprop_cuda.__version__
    assert shown["torch"] == torch.__version__
    assert shown["compiler"] == "some 1.2"
    assert shown["kernels"] == "a, b"
    assert shown["threads"] == str(torch.get_num_threads())
    assert shown["devices"].startswith("cpu")


def test_help_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert f"  {name:<16}{preset.source}" in shown


# ---------------------------------------------------------------------------------------------------------------
# Convolutional networks


@pytest.mark.parametrize("preset", ["p-conv", "ep-conv", "c-ep-conv"])
def test_convnets_on_mnist(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "data", train=8, test=4)
    options = [*QUICK, "--preset", preset, "--steps", "3", "2", "--batch", "4"]
    assert cli.main([*options, "--epochs", "2", "--out", "a"]) == 0
    config = config_of("a")
    assert (config["data"], config["batch"], config["lr"]) == ("mnist", 4, list(PRESETS[preset].lr))
    nudged = {"p-conv": [2], "ep-conv": [2, 2], "c-ep-conv": [2, 2, 2]}[preset]
    assert [metrics["steps"] for metrics in metrics_of("a")] == [[3, *nudged]] * 2
    capsys.readouterr()
    assert cli.main(["eval", "--run", "a"]) == 0
    assert f"test error {metrics_of('a')[-1]['test_error']:.2f} %" in capsys.readouterr().out


SMALL = {"convolutions": Convolutions((4, 3, 3, 2), 3, (1, 1, 1, 0), "mmmm"), "free_steps": 3, "nudged_steps": 2}


@pytest.mark.parametrize("name", ["cifar10-ep-mse", "cifar10-ep-ce", "cifar10-kp-vf"])
def test_convnets_on_cifar_resume_bitwise_after_their_rates_have_fallen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "data", monkeypatch, "cifar10")
    monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], **SMALL, batch_size=16, epochs=4, cosine_epochs=2))
    options = [*QUICK, "--preset", name]
    assert cli.main([*options, "--out", "whole"]) == 0
    for epochs in ("1", "3", "4"):
        resume = ["--resume"] if epochs != "1" else []
        assert cli.main([*options, "--out", "parts", "--epochs", epochs, *resume]) == 0
    assert metrics_of("parts") == metrics_of("whole")
    whole, parts = read_checkpoint("whole"), read_checkpoint("parts")
    assert [group["lr"] for group in parts["optimizer"]["param_groups"]] == [1e-5] * 5
    assert whole["optimizer"]["param_groups"] == parts["optimizer"]["param_groups"]
    assert whole["scheduler"] == parts["scheduler"]
    for key, p in whole["network"].items():
        assert torch.equal(parts["network"][key], p), key
    momenta = [state["optimizer"]["state"] for state in (whole, parts)]
    for index, state in momenta[0].items():
        assert torch.equal(momenta[1][index]["momentum_buffer"], state["momentum_buffer"])


def test_cifar_presets_run_on_other_colour_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "data", monkeypatch, "cifar100")
    monkeypatch.setitem(PRESETS, "cifar10-ep-ce", replace(PRESETS["cifar10-ep-ce"], **SMALL, batch_size=8))
    assert cli.main([*QUICK, "--preset", "cifar10-ep-ce", "--data", "cifar100", "--epochs", "1", "--out", "a"]) == 0
    assert read_checkpoint("a")["network"]["model.9.weight"].shape == (100, 2)


def test_a_preset_that_does_not_fit_the_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "data")
    train = ["train", "--preset", "cifar10-ep-ce", "--data", "mnist"]
    message = "--preset cifar10-ep-ce does not fit mnist, whose images are (1, 28, 28): nothing is left of the image"
    assert_refused(capsys, train, message)
    assert_refused(
        capsys, ["train", "--preset", "p-conv", "--data", "digits"], "does not fit digits, whose images are (1, 8, 8)"
    )
    assert not Path("runs").exists()


def test_what_is_missing_for_colour_sets_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("data").absolute()
    assert_refused(capsys, ["train", "--preset", "cifar10-ep-ce"], f"cifar10 is not in {folder}/cifar-10-batches-py")
    monkeypatch.setattr(data.sets, "find_spec", lambda _: None)
    assert_refused(
        capsys, ["train", "--preset", "p-1h", "--data", "svhn"], "scipy, which is not installed: pip install"
    )
