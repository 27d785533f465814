"""What a kill, and a write that fails, leave behind: a run that goes on as if there had been none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from project import SUPPORT
from training_runs import (
    MAKERS,
    assert_same_run,
    contents,
    fit,
    read_metrics,
)

import ceprop_cuda
from ceprop_cuda.output.files import append, write_atomically


def test_a_kill_between_any_two_calls_of_the_system_is_followed_by_the_same_run(tmp_path: Path) -> None:
    """Of a new run and of a resumed one, and in the middle of every write."""
    program = [sys.executable, str(SUPPORT / "killed_runs.py"), str(tmp_path)]
    package = str(Path(ceprop_cuda.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    new, resumed = map(int, ended.stdout.split())
    # 4 files at the start, 3 after each of 2 epochs or of the last one; at least 4 calls and half a write for each.
    assert new >= (4 + 3 + 3) * 5
    assert resumed >= (4 + 3) * 5


KILLED_PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import training_runs
from ceprop_cuda.data import Batches

class Deadly(Batches):
    epochs = 0
    def __iter__(self):
        self.epochs += 1
        for number, batch in enumerate(super().__iter__()):
            if self.epochs == 2 and number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

x, y = training_runs.samples()
batches = Deadly(x, y, batch_size=8, shuffle=True, seed=7)
training_runs.fit(training_runs.started({name!r}), Path({out!r}), batches=batches)
"""


@pytest.mark.parametrize("name", MAKERS)
def test_sigkill_within_an_epoch_is_followed_by_the_same_run(name: str, tmp_path: Path) -> None:
    out = tmp_path / "a"
    program = KILLED_PROGRAM.format(tests=str(SUPPORT), name=name, out=str(out))
    package = str(Path(ceprop_cuda.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": package}, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [metrics["epoch"] for metrics in read_metrics(out)] == [1]
    trainer = MAKERS[name]()
    fit(trainer, out, resume=True)
    assert_same_run(trainer, out, name)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    write = os.write

    def fail(descriptor: int, content: bytes) -> int:
        if len(content) > 4:
            return write(descriptor, content[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match=r"/a cannot be written: its disk is full; make room there") as raised:
            write_atomically(path, b"new, unfinished")
        with pytest.raises(OSError, match=r"/a cannot be written: its disk is full"):
            append(path, b", unfinished")
    assert raised.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {"a": b"old"}
    write_atomically(path, b"new")
    append(path, b", more")
    assert contents(tmp_path) == {"a": b"new, more"}
