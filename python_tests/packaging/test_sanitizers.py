"""The portable kernels under the compiler's sanitizers: no data race between workers, no step beyond their memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kept_programs import object_of, program_of
from project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def exercise(sanitizers: str, number: str, copy: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Compile exercise.cpp with these sanitizers, here or in a ``copy`` of the project, and run it to its first
    fault."""
    folder = copy or ROOT
    # -Og: with "address,undefined" the compiler takes half of what it takes with -O1. Without, -O1 is quicker in all.
    optimised = "-O1" if sanitizers == "thread" else "-Og"
    flags = ["-std=c++20", optimised, "-g1", f"-fsanitize={sanitizers}", "-fno-math-errno", "-fno-trapping-math"]
    flags += [f"-DNUMBER={number}", *([] if sanitizers == "thread" else ["-fopenmp"])]
    sources = (folder / "python_tests/support/sanitizers/exercise.cpp", folder / "csrc/cpu/memory.cpp")
    objects = [object_of(source, *flags, copy=copy) for source in sources]
    program = program_of("exercise", *flags, *objects, "-pthread")
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    # A fault may make workers wait for each other forever.
    return subprocess.run([str(program)], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("number", ["float", "double"])
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_nothing_to_report(sanitizers: str, number: str) -> None:
    done = exercise(sanitizers, number)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr[:4000]
    ran = re.fullmatch(r"(\d+) calls, (\d+) free phases ended early, (\d+) differ .*\n", done.stdout)
    assert ran
    calls, early, differ = map(int, ran.groups())
    assert calls > 100 and early > 10 and differ == 0


@pytest.mark.parametrize(
    ("sanitizers", "file", "right", "wrong"),
    [
        # A step that overwrites states which slow workers still read.
        ("thread", "../model/stages.h", "ring = 3, kept_free = 3", "ring = 2, kept_free = 3"),
        # Odd layers that move before all even ones have.
        (
            "thread",
            "dense/relaxation.h",
            "part, after);\n      wait(worker, part);",
            "part, after);\n      if (turn + 1 == sharing_.turns()) wait(worker, part);",
        ),
        # Workers that say whether their states stay before the others have read what they said last.
        ("thread", "settling.h", "flags_.data() + count / steps_per_check % 2 * worker.count", "flags_.data()"),
        # Weights that are read while another worker still writes the copy.
        ("thread", "dense/continual_update.h", "if (inner && !network_.free_feedback) worker.wait();", ""),
        # Low-rank updates that use the others' matrices before they are complete.
        ("thread", "dense/low_rank_update.h", "of_free_);\n    }\n    worker.wait();", "of_free_);\n    }"),
        # Convolutions that learn from maps which other workers have not yet looked at, or move while others read them.
        ("thread", "conv/contrast.h", "      }\n    }\n    worker.wait();\n", "      }\n    }\n"),
        (
            "thread",
            "conv/learning.h",
            "    worker.wait();\n    relaxation_.pack(worker);",
            "    relaxation_.pack(worker);",
        ),
        # Too few sums for the samples that are taken together.
        ("address", "conv/relaxation.h", "Buffer<T>(together_ * sums)", "Buffer<T>(sums)"),
        # Too little memory, in blocks that are kept from call to call.
        (
            "address",
            "dense/low_rank_update.h",
            "of_away_.emplace_back(relaxation.padded(n) * n)",
            "of_away_.emplace_back(n)",
        ),
    ],
    ids=["two buffers", "one turn", "one flag", "copies", "matrices", "places", "packing", "sums", "memory"],
)
def test_a_missing_buffer_or_barrier_is_reported(
    sanitizers: str, file: str, right: str, wrong: str, tmp_path: Path
) -> None:
    for folder in ("csrc", "python_tests/support/sanitizers"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    faulty = tmp_path / "csrc" / "cpu" / file
    text = faulty.read_text()
    assert text.count(right) == 1
    faulty.write_text(text.replace(right, wrong))
    report = {"thread": "WARNING: ThreadSanitizer: data race", "address": "AddressSanitizer: heap-buffer-overflow"}
    assert report[sanitizers] in exercise(sanitizers, "float", tmp_path).stderr
