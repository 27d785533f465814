"""A program that kills runs before each of their calls of the system, and goes on with them.

Usage: ``killed_runs.py FOLDER``. Prints at how many moments it has killed a new run, and a resumed one; ends by an
AssertionError if a run that went on differs from one that was never killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from training_runs import MAKERS, assert_same_run, fit, started, uninterrupted

from ceprop_cuda.output import files
from ceprop_cuda.run_directory import directory

EPOCHS = 2
NAME = "cvf"


class DeadlyOS:
    """Stands for the module ``os``. The process is killed before its ``last``-th call of a function, or ``half_way``
    through the ``last``-th write."""

    def __init__(self, last: int, half_way: bool) -> None:
        self.calls = 0
        self.last = last
        self.half_way = half_way

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if isinstance(function, type) or not callable(function):
            return function

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += not self.half_way or name == "write"
            if self.calls == self.last:
                if self.half_way:
                    descriptor, content = arguments
                    function(descriptor, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call


def in_a_child(work: Callable[[], object]) -> int:
    """How a process that does this ends: its status, or minus a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go_on(out: Path) -> None:
    """From what there is; the run begins anew only for want of its first checkpoint."""
    resume = (out / "checkpoint.pt").exists()
    trainer = MAKERS[NAME]() if resume else started(NAME)
    fit(trainer, out, epochs=EPOCHS, resume=resume)
    assert_same_run(trainer, out, NAME, epochs=EPOCHS)


def killed(first: Path | None, work: Callable[[Path], object], folder: Path) -> int:
    """At how many moments ``work`` on a copy of ``first`` was killed, and gone on with."""
    moments = 0
    for half_way in (False, True):
        for last in count(1):
            out = folder / f"{last}-{half_way}"
            if first is not None:
                shutil.copytree(first, out)

            def to_the_end(last: int = last, half_way: bool = half_way, out: Path = out) -> None:
                files.os = DeadlyOS(last, half_way)  # type: ignore[assignment]
                work(out)

            status = in_a_child(to_the_end)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            assert in_a_child(lambda out=out: go_on(out)) == 0, out
            moments += 1
    return moments


def main() -> None:
    torch.set_num_threads(1)  # a forked process has no more of them
    directory.curves = lambda _: b"figure"  # drawing would take longer than all the rest
    os.fsync = lambda _: None  # a kill, other than the loss of power, loses nothing that the kernel has
    uninterrupted(NAME, EPOCHS)  # before all children, which then need not do it
    folder = Path(sys.argv[1])
    one_epoch = folder / "one-epoch"
    fit(started(NAME), one_epoch, epochs=1)
    print(killed(None, lambda out: fit(started(NAME), out, epochs=EPOCHS), folder / "new"))
    print(killed(one_epoch, lambda out: fit(MAKERS[NAME](), out, epochs=EPOCHS, resume=True), folder / "resumed"))


if __name__ == "__main__":
    main()
