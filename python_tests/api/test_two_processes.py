"""Two processes in one folder, locks, and how the processes of ``ceprop reproduce`` end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, assert_refused, metrics_of
from training_runs import FILES, assert_same_run, contents, ep_trainer, fit, started, train_batches

from ceprop_cuda import cli
from ceprop_cuda.data import Batches
from ceprop_cuda.output import files
from ceprop_cuda.reproduce import runs

TAKEN = "another process is training in a: wait until it has ended, or name another folder"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def running(*arguments: str, heed: int = signal.SIGINT) -> Iterator[subprocess.Popen[str]]:
    """``ceprop`` with these arguments, which heeds this signal even if the tests were told not to."""
    command = [sys.executable, "-m", "ceprop_cuda", *arguments]
    heeding = partial(signal.signal, heed, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, preexec_fn=heeding) as process:
        try:
            yield process
        finally:
            process.kill()


def is_trained(folder: str) -> bool:
    return Path(folder, "metrics.jsonl").exists() and len(metrics_of(folder)) > 0


def test_a_second_process_is_refused_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with running("train", "--epochs", "5000", "--threads", "1", "--out", "a") as process:
        wait_for(lambda: is_trained("a"), process)
        process.send_signal(signal.SIGSTOP)
        before = contents(Path("a"))
        assert_refused(capsys, ["train", "--epochs", "1", "--out", "a"], TAKEN)
        assert_refused(capsys, ["train", "--resume", "--out", "a"], TAKEN)
        for resume in (False, True):
            trainer = ep_trainer()
            weights = [p.clone() for p in trainer.rule.net.parameters()]
            with pytest.raises(BlockingIOError, match=TAKEN):
                fit(trainer, Path("a"), resume=resume)
            assert all(p.equal(q) for p, q in zip(weights, trainer.rule.net.parameters(), strict=True))
        assert cli.main(["eval", "--run", "a"]) == 0  # which only looks
        assert contents(Path("a")) == before
        process.kill()
        process.wait()
    assert cli.main(["train", "--resume", "--epochs", "5001", "--out", "a", "--preset", "p-1h"]) == 2
    epochs = str(len(metrics_of("a")) + 2)
    assert cli.main(["train", "--resume", "--epochs", epochs, "--out", "a", "--threads", "1"]) == 0
    assert sorted(contents(Path("a"))) == FILES


def test_a_lock_ends_with_its_run_even_if_that_fails(tmp_path: Path) -> None:
    for number in range(3):
        with files.lock(tmp_path):
            with pytest.raises(BlockingIOError), files.lock(tmp_path):
                pass
            assert sorted(contents(tmp_path)) == [files.LOCK]
        assert contents(tmp_path) == {}, number
    with pytest.raises(TypeError):
        fit(started("ep"), tmp_path / "a", batches=Batches(*[train_batches().x.double(), train_batches().y], 8))
    fit(trainer := started("ep"), tmp_path / "a")
    assert_same_run(trainer, tmp_path / "a", "ep")


def test_a_lock_does_not_live_on_in_forked_workers(tmp_path: Path) -> None:
    """As a DataLoader forks them, which a kill of the training leaves behind for some seconds."""
    ready, end = os.pipe()
    with files.lock(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(ready, 1)  # until the parent ends
            os._exit(0)
        with pytest.raises(BlockingIOError), files.lock(tmp_path):
            pass
    with files.lock(tmp_path):
        pass
    os.close(end)
    os.close(ready)
    os.waitpid(child, 0)


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    fit(started("ep"), tmp_path, epochs=1)
    assert "cannot be locked (Operation not supported): see to it that no other" in caplog.text


def test_links_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    out = tmp_path / "a"
    out.mkdir()
    (out / "curves.png").symlink_to(other)
    (out / "config.json.tmp").symlink_to(other)
    fit(started("ep"), out, epochs=1)
    assert other.read_text() == "precious"
    assert sorted(contents(out)) == FILES
    assert not any(path.is_symlink() for path in out.iterdir())
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {other.stat().st_mode & 0o777}


# ---------------------------------------------------------------------------------------------------------------
# ceprop reproduce

REPRODUCE = ["reproduce", "--data", "digits", "--threads", "1", "--out", "a", "--rows", "digits"]


def test_a_signal_ends_all_processes_of_reproduce_which_is_alone_in_its_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = ["a/digits/seed-0", "a/digits/seed-1"]
    with running(*REPRODUCE, "--seeds", "2", "--jobs", "2", "--epochs", "5000", heed=signal.SIGTERM) as process:
        wait_for(lambda: all(map(is_trained, folders)), process)
        for rows in ([], ["--rows", "digits"]):
            assert_refused(capsys, ["reproduce", "--out", "a", *rows], TAKEN)
        for folder in folders:
            assert_refused(capsys, ["train", "--resume", "--out", folder], f"another process is training in {folder}")
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert shown.splitlines()[-1] == "ceprop: terminated; finished epochs are kept, the same command goes on"
    for folder in folders:  # nobody trains there any more
        epochs = str(len(metrics_of(folder)) + 2)
        assert cli.main(["train", "--resume", "--out", folder, "--threads", "1", "--epochs", epochs]) == 0


@pytest.mark.parametrize(("number", "told"), [(signal.SIGHUP, "hung up"), (signal.SIGINT, "interrupted")])
def test_processes_end_by_every_signal_to_end(
    number: signal.Signals, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that ignore interrupts, as what was started in the background does, and must be killed."""
    monkeypatch.setattr(runs, "SECONDS_TO_END", 0.2)
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["bash", "-c", "trap '' INT; sleep 100"], start_new_session=True))
        if len(started) == 2:
            os.kill(os.getpid(), number)  # before anybody knows of the process
        return started[-1]

    monkeypatch.setattr(runs, "_start", start)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # even if the tests were told to ignore it
    before = signal.signal(number, signal.SIG_DFL)
    assert cli.main([*REPRODUCE, "--seeds", "3", "--jobs", "2"]) == 128 + number
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert signal.signal(number, before) == signal.SIG_DFL


def test_a_run_that_is_killed_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert cli.main([*REPRODUCE, "--seeds", "1"]) == 1
    assert "1 of 1 runs failed: digits seed 0: exit status 1" in capsys.readouterr().err
    killed = Path("killed")
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed.absolute()))
    assert cli.main([*REPRODUCE, "--seeds", "1"]) == 1
    assert "digits seed 0: it ended by signal 9" in capsys.readouterr().err


def test_reproduce_refuses_files_of_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*REPRODUCE, "--seeds", "1", "--epochs", "1"]) == 0
    for name in ("metrics.jsonl", "config.json"):
        path = Path("a/digits/seed-0", name)
        whole = path.read_bytes()
        path.write_bytes(b"\xff\n")
        for command in (REPRODUCE, ["reproduce", "--out", "a"]):
            assert_refused(capsys, command, f"{path} holds no JSON: it is damaged")
        path.write_bytes(whole)
