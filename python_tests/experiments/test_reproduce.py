"""``ceprop reproduce``: the published numbers, the runs it makes, resumes and skips, and what it reports of them."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT, assert_refused, kept_of, lines_of, metrics_of

from ceprop_cuda import cli
from ceprop_cuda.cli.train import trainer_of
from ceprop_cuda.data import load
from ceprop_cuda.presets import PRESETS
from ceprop_cuda.reproduce import runs
from ceprop_cuda.reproduce.angles import BATCHES, gradient_angle
from ceprop_cuda.reproduce.report import curves, results, table
from ceprop_cuda.reproduce.rows import ROWS
from ceprop_cuda.reproduce.runs import Run
from ceprop_cuda.run_directory import read_checkpoint
from ceprop_cuda.theorem import compare

# Test error, its standard deviation, training error.
PUBLISHED = {
    "ep-1h": (2.00, 0.13, 0.20),
    "ep-2h": (1.95, 0.10, 0.14),
    "c-ep-1h": (2.28, 0.16, 0.41),
    "c-ep-2h": (2.44, 0.14, 0.31),
    "c-vf-1h": (2.43, 0.08, 0.77),
    "c-vf-2h": (2.97, 0.19, 1.58),
    "p-3h": (2.01, 0.18, 0.10),
    "eb-1h": (2.06, 0.17, 0.13),
    "eb-2h": (2.01, 0.21, 0.11),
    "p-conv": (1.02, 0.04, 0.54),
    "eb-1h-bptt": (2.11, None, None),
    "eb-2h-bptt": (2.02, None, None),
    "p-1h-bptt": (2.00, None, None),
    "p-2h-bptt": (2.09, None, None),
    "p-3h-bptt": (2.30, None, None),
    "p-conv-bptt": (0.88, None, None),
}
QUICK = ["reproduce", "--data", "digits", "--threads", "1", "--out", "r"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])


def measured() -> dict[str, dict[str, str]]:
    return {line["row"]: line for line in lines_of("r/results.csv")}


def fake_run(name: str, seed: int, errors: list[float], epochs: int, data: str = "mnist") -> Run:
    """A run directory with these test errors after each epoch; training errors are a tenth."""
    folder = Path("r", name, f"seed-{seed}")
    folder.mkdir(parents=True)
    lines = [{"test_error": error, "train_error": error / 10, "seconds": 90.0} for error in errors]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row, preset = ROWS[name], PRESETS[ROWS[name].preset]
    config: dict[str, Any] = {"preset": row.preset, "data": data, "seed": seed, "bptt": row.bptt, "epochs": epochs}
    config |= {"angle": row.angle or 0.0, "lr": preset.lr, "steps": [30, 10], "batch": 20, "data_dir": "data"}
    config |= {"rule": {"name": "EP", "beta": 0.1}, "schedule": row.schedule or preset.schedule, "tolerance": None}
    config |= {"nudging": row.nudging or preset.nudging, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(config))
    return Run(name, row, seed, epochs, folder, data)


def test_published_numbers() -> None:
    assert {name: tuple(row.published) for name, row in ROWS.items() if row.published is not None} == PUBLISHED
    for name, row in ROWS.items():
        base = name.removesuffix("-bptt").removesuffix("-async").removesuffix("-symmetric")
        assert row.preset == base.removesuffix(f"-{row.angle or 0:g}")
        assert row.bptt == name.endswith("-bptt")
        assert (row.schedule == "asynchronous") == name.endswith("-async")
        assert (row.nudging == "symmetric") == name.endswith("-symmetric")
    angles = [row.angle for row in ROWS.values() if row.angle is not None]
    assert angles == [0, 22.5, 45, 67.5, 90, 112.5, 135, 157.5, 180]


# ---------------------------------------------------------------------------------------------------------------
# Reports


def test_means_and_deviations_over_complete_runs() -> None:
    made = [fake_run("ep-1h", seed, [9.0, error], 2) for seed, error in enumerate((2.0, 2.2, 2.4))]
    made += [fake_run("ep-1h", 3, [9.0], 2), fake_run("p-1h-bptt", 0, [3.0, 2.5], 2), fake_run("eb-1h", 0, [], 2)]
    ep, bptt, none = results(made)
    assert (ep.row, ep.runs, ep.planned, ep.epochs) == ("ep-1h", 3, 4, 2)
    assert (ep.published_test, ep.published_deviation, ep.published_train) == (2.00, 0.13, 0.20)
    assert (ep.test, ep.test_deviation) == (pytest.approx(2.2), pytest.approx(statistics.stdev([2.0, 2.2, 2.4])))
    assert (ep.train, ep.train_deviation) == (pytest.approx(0.22), pytest.approx(0.02))
    assert ep.minutes == 3
    assert ep.settings == "EP on mnist: T 30 K 10 beta 0.1 B 20 lr 0.08 0.04"
    assert (bptt.runs, bptt.test, bptt.test_deviation, bptt.published_test) == (1, 2.5, None, 2.00)
    assert (none.runs, none.test, none.settings) == (0, None, "")
    lines = table([ep, bptt, none], {"cpu": "fast"}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert cells[2] == ["ep-1h", "2.00 +- 0.13 (0.20)", "2.20 +- 0.20 (0.22 +- 0.02)", "3 of 4", "2", "3"]
    assert cells[3] == ["p-1h-bptt", "2.00", "2.50 (0.25)", "1 of 1", "2", "3"]
    assert cells[4] == ["eb-1h", "2.06 +- 0.17 (0.13)", "", "0 of 1", "2", ""]
    assert lines[-1] == "cpu fast"
    assert curves(made).startswith(b"\x89PNG")


def test_what_differs_from_synchronous_steps_of_full_length_is_told() -> None:
    (result,) = results([fake_run("ep-2h-async", 0, [2.0], 1)])
    assert result.settings == "EP on mnist: T 30 K 10 beta 0.1 B 20 lr 0.2 0.05 0.005 asynchronous"
    (result,) = results([fake_run("ep-2h-symmetric", 0, [2.0], 1)])
    assert result.settings.endswith("lr 0.2 0.05 0.005 symmetric")
    run = fake_run("p-3h", 0, [2.0], 1)
    config = run.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tolerance": 1e-3, "device": "cuda:1"}))
    assert results([run])[0].settings.endswith("tolerance 0.001 on cuda:1")


def test_numbers_published_on_mnist_stand_beside_no_other_data() -> None:
    (result,) = results([fake_run("ep-1h", 0, [2.0], 1, data="kmnist")])
    assert (result.published_test, result.published_deviation, result.published_train) == (None, None, None)


def test_a_longer_run_is_complete_at_the_epochs_asked_for() -> None:
    run = fake_run("ep-1h", 0, [9.0, 5.0, 4.0], 3)
    shorter = Run(run.name, run.row, 0, 2, run.folder, "mnist")
    assert shorter.is_complete()
    assert results([shorter])[0].test == 5.0


def test_without_rows_it_reports_on_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    fake_run("p-3h", 0, [2.0, 1.5], 2)
    fake_run("ep-1h", 0, [3.0], 1)
    fake_run("ep-1h", 1, [3.0], 5)
    assert cli.main(["reproduce", "--out", "r"]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert rows == ["ep-1h", "ep-1h", "p-3h"]
    assert measured()["p-3h"]["test"] == "1.5"
    assert Path("r/results.md").read_text().startswith("| row ")
    assert Path("r/curves.png").exists()
    lines = [tuple(line.values()) for line in lines_of("r/curves.csv")]
    begin = ("p-3h", "mnist", "0")
    assert lines == [("ep-1h", "mnist", "0", "1", "0.3", "3"), (*begin, "1", "0.2", "2"), (*begin, "2", "0.15", "1.5")]
    assert not Path("r/angles.csv").exists()


# ---------------------------------------------------------------------------------------------------------------
# Runs


def test_runs_are_made_skipped_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*QUICK, "--rows", "digits,c-vf-1h-45", "--seeds", "2", "--jobs", "2"]
    assert cli.main([*command, "--epochs", "1"]) == 0
    assert "results in r" in capsys.readouterr().out
    first = {seed: metrics_of(f"r/digits/seed-{seed}") for seed in (0, 1)}
    errors = [history[0]["test_error"] for history in first.values()]
    assert errors[0] != errors[1]
    row = measured()["digits"]
    assert (row["runs"], row["planned"], row["epochs"]) == ("2", "2", "1")
    assert float(row["test"]) == pytest.approx(statistics.fmean(errors), rel=1e-4)
    assert len(row["commits"].split()) == 1
    config = read_checkpoint("r/c-vf-1h-45/seed-1")["config"]
    assert (config["preset"], config["seed"], config["angle"], config["data"]) == ("c-vf-1h", 1, 45, "digits")

    points = lines_of("r/angles.csv")
    assert [(point["row"], point["seed"], point["feedback_angle"]) for point in points] == [
        ("c-vf-1h-45", "0", "45"),
        ("c-vf-1h-45", "1", "45"),
    ]
    assert all(0 < float(point["gradient_angle"]) < 90 for point in points)
    assert Path("r/angles.png").read_bytes().startswith(b"\x89PNG")

    made = Path("r/digits/seed-0/checkpoint.pt").stat().st_mtime_ns
    assert cli.main([*command, "--epochs", "1"]) == 0
    assert Path("r/digits/seed-0/checkpoint.pt").stat().st_mtime_ns == made

    assert cli.main([*QUICK, "--rows", "digits", "--seeds", "1", "--epochs", "2"]) == 0
    assert cli.main(["train", "--epochs", "2", "--threads", "1", "--out", "alone"]) == 0
    assert metrics_of("r/digits/seed-0") == metrics_of("alone")
    assert metrics_of("r/digits/seed-1") == first[1]
    assert measured()["c-vf-1h-45"]["runs"] == "2"


def test_a_run_that_fails_is_told_and_the_others_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r/digits/seed-0").mkdir(parents=True)
    Path("r/digits/seed-0/metrics.jsonl").write_text("")  # a file that is not its own
    assert cli.main([*QUICK, "--rows", "digits", "--seeds", "2", "--epochs", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(
        "ceprop: 1 of 2 runs failed: digits seed 0: ceprop: r/digits/seed-0 holds a run already"
    )
    assert "1 of 2" in shown.out
    assert (measured()["digits"]["runs"], len(metrics_of("r/digits/seed-1"))) == ("1", 1)


def test_an_interrupt_ends_all_processes_and_the_same_command_goes_on() -> None:
    command = [sys.executable, "-m", "ceprop_cuda", *QUICK, "--rows", "digits", "--seeds", "2", "--jobs", "2"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    folders = [Path("r/digits/seed-0"), Path("r/digits/seed-1")]
    with subprocess.Popen(
        [*command, "--epochs", "500"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not all((folder / "metrics.jsonl").exists() and metrics_of(str(folder)) for folder in folders):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "ceprop: interrupted; finished epochs are kept, the same command goes on"
    kept = [kept_of(str(folder)) for folder in folders]
    for folder, history in zip(folders, kept, strict=True):
        log = folder.with_name(f"{folder.name}.log").read_text()
        assert log.splitlines()[-1].startswith(f"ceprop: interrupted; {len(history)} finished epochs are kept")
    epochs = max(map(len, kept)) + 1
    assert cli.main([*command[3:], "--epochs", str(epochs)]) == 0
    for folder, history in zip(folders, kept, strict=True):
        assert len(metrics_of(str(folder))) == epochs
        assert metrics_of(str(folder))[: len(history)] == history


def test_the_commands_are_those_of_ceprop_train() -> None:
    (run,) = runs.planned(Path("r"), {"p-2h-bptt": ROWS["p-2h-bptt"]}, 1, None, None)
    begin = ["train", "--preset", "p-2h", "--rule", "bptt", "--data", "mnist", "--seed", "0", "--epochs", "50"]
    assert run.command(["--threads", "1"]) == [*begin, "--out", "r/p-2h-bptt/seed-0", "--threads", "1"]
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint.pt").write_text("")
    assert run.command([]) == [*begin, "--out", "r/p-2h-bptt/seed-0", "--resume"]
    (other,) = runs.planned(Path("r"), {"c-vf-1h-symmetric": ROWS["c-vf-1h-symmetric"]}, 1, None, None)
    assert other.command([])[:5] == ["train", "--preset", "c-vf-1h", "--nudging", "symmetric"]
    (other,) = runs.planned(Path("r"), {"ep-2h-async": ROWS["ep-2h-async"]}, 1, 3, "kmnist")
    schedule = ["--preset", "ep-2h", "--schedule", "asynchronous", "--data", "kmnist", "--seed", "0", "--epochs", "3"]
    assert other.command([]) == ["train", *schedule, "--out", "r/ep-2h-async/seed-0"]


def test_a_run_with_another_schedule_is_not_gone_on_with() -> None:
    fake_run("ep-2h", 0, [2.0], 1)
    (run,) = runs.planned(Path("r"), {"ep-2h": replace(ROWS["ep-2h"], schedule="asynchronous")}, 1, 1, None)
    with pytest.raises(ValueError, match="holds a run with schedule 'synchronous', wanted is 'asynchronous'"):
        run.refuse_another()


def test_the_angle_to_the_gradient_is_that_of_the_network_that_was_trained() -> None:
    options = ["--preset", "c-vf-1h", "--data", "digits", "--angle", "60", "--seed", "3", "--epochs", "1"]
    assert cli.main(["train", *options, "--out", "r/c-vf-1h-67.5/seed-3"]) == 0
    run = Run("c-vf-1h-67.5", ROWS["c-vf-1h-67.5"], 3, 1, Path("r/c-vf-1h-67.5/seed-3"), "digits")
    digits = load("digits")
    torch.manual_seed(3)
    trainer, preset = trainer_of(run.config(), digits)
    rule, size = trainer.rule, preset.batch_size
    rule.net.double()
    angles = [
        compare(rule, digits.train_x[start : start + size].double(), digits.train_y[start : start + size]).angle
        for start in range(0, BATCHES * size, size)
    ]
    assert gradient_angle(run, None) == pytest.approx(statistics.fmean(angles))


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["reproduce", "--rows", "digits", "--out", "r"]
    assert_refused(
        capsys, ["reproduce", "--rows", "ep-9h,digits"], "--rows names unknown rows ep-9h; there are ep-1h, "
    )
    assert_refused(capsys, ["reproduce", "--out", "r"], "there is no run in r: name rows to train by --rows")
    for option in ("--seeds", "--jobs", "--epochs", "--threads"):
        assert_refused(capsys, [*rows, option, "0"], f"{option} must be an int >= 1, got 0")
    assert not Path("r").exists()
    fake_run("digits", 0, [3.0], 1, data="mnist")
    assert_refused(capsys, rows, "r/digits/seed-0 holds a run with data 'mnist', wanted is 'digits'")
