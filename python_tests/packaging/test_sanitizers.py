"""The portable kernels under the compiler's sanitizers: no data race between workers, no step beyond their memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from kept_programs import object_of, program_of
from project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


# By name: the sanitizer that reports the fault, the file, what is right in it, and what makes it wrong where the fault
# is the one that a run chooses, CHOSEN.
FAULTS = {
    "two buffers": (  # a step that overwrites states which slow workers still read
        "thread",
        "../model/stages.h",
        "inline constexpr int ring = 3, kept_free = 3",
        "inline const int ring = CHOSEN ? 2 : 3;\ninline constexpr int kept_free = 3",
    ),
    "one turn": (  # odd layers that move before all even ones have
        "thread",
        "dense/relaxation.h",
        "part, after);\n      wait(worker, part);",
        "part, after);\n      if (!CHOSEN || turn + 1 == sharing_.turns()) wait(worker, part);",
    ),
    "one flag": (  # workers that say whether their states stay before the others have read what they said last
        "thread",
        "settling.h",
        "flags_.data() + count / steps_per_check % 2 * worker.count",
        "flags_.data() + (CHOSEN ? 0 : count / steps_per_check % 2 * worker.count)",
    ),
    "copies": (  # weights that are read while another worker still writes the copy
        "thread",
        "dense/continual_update.h",
        "if (inner && !network_.free_feedback) worker.wait();",
        "if (inner && !network_.free_feedback && !CHOSEN) worker.wait();",
    ),
    "matrices": (  # low-rank updates that use the others' matrices before they are complete
        "thread",
        "dense/low_rank_update.h",
        "of_free_);\n    }\n    worker.wait();",
        "of_free_);\n    }\n    if (!CHOSEN) worker.wait();",
    ),
    "places": (  # convolutions that learn from maps which other workers have not yet looked at
        "thread",
        "conv/contrast.h",
        "      }\n    }\n    worker.wait();\n",
        "      }\n    }\n    if (!CHOSEN) worker.wait();\n",
    ),
    "packing": (  # convolutions that move while others read them
        "thread",
        "conv/learning.h",
        "    worker.wait();\n    relaxation_.pack(worker);",
        "    if (!CHOSEN) worker.wait();\n    relaxation_.pack(worker);",
    ),
    "sums": (  # too few sums for the samples that are taken together
        "address,undefined",
        "conv/relaxation.h",
        "Buffer<T>(together_ * sums)",
        "Buffer<T>((CHOSEN ? 1 : together_) * sums)",
    ),
    "memory": (  # too little memory, in blocks that are kept from call to call
        "address,undefined",
        "dense/low_rank_update.h",
        "of_away_.emplace_back(relaxation.padded(n) * n)",
        "of_away_.emplace_back((CHOSEN ? 1 : relaxation.padded(n)) * n)",
    ),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all faults, of which none is there but the one that a run chooses: so all are compiled
    at once."""
    copy = tmp_path_factory.mktemp("faulty")
    for folder in ("csrc", "python_tests/support/sanitizers"):
        shutil.copytree(ROOT / folder, copy / folder)
    for number, (_, name, right, wrong) in enumerate(FAULTS.values()):
        file = copy / "csrc" / "cpu" / name
        text = file.read_text()
        assert text.count(right) == 1
        file.write_text(text.replace(right, wrong.replace("CHOSEN", f"(chosen_fault == {number})")))
    return copy


def exercise(
    sanitizers: str, number: str, copy: Path | None = None, fault: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Compile exercise.cpp with these sanitizers, here or in the ``copy`` with the faults, and run it to its first
    report."""
    folder = copy or ROOT
    # -Og: with "address,undefined" the compiler takes half of what it takes with -O1. Without, -O1 is quicker in all.
    optimised = "-O1" if sanitizers == "thread" else "-Og"
    flags: list[object] = ["-std=c++20", optimised, "-g1", f"-fsanitize={sanitizers}"]
    flags += ["-fno-math-errno", "-fno-trapping-math", f"-DNUMBER={number}"]
    flags += [] if sanitizers == "thread" else ["-fopenmp"]
    support = folder / "python_tests" / "support" / "sanitizers"
    of_copy = [] if copy is None else ["-include", support / "chosen_fault.h"]
    sources = (support / "exercise.cpp", folder / "csrc/cpu/memory.cpp")
    objects = [object_of(source, *flags, *of_copy, copy=copy) for source in sources]
    program = program_of("exercise", *flags, *objects, "-pthread")
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    environment["FAULT"] = "-1" if fault is None else str(list(FAULTS).index(fault))
    # A fault may make workers wait for each other forever, before there was anything to report: then once more.
    for timeout in (300,) if fault is None else (60, 60, 60):
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run([str(program)], capture_output=True, text=True, env=environment, timeout=timeout)
    raise AssertionError(f"{program} did not end")


@pytest.mark.parametrize("number", ["float", "double"])
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_nothing_to_report(sanitizers: str, number: str, faulty: Path) -> None:
    """float: where the faults could be, but none is chosen."""
    done = exercise(sanitizers, number, faulty if number == "float" else None)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr[:4000]
    ran = re.fullmatch(r"(\d+) calls, (\d+) free phases ended early, (\d+) differ .*\n", done.stdout)
    assert ran
    calls, early, differ = map(int, ran.groups())
    assert calls > 100 and early > 10 and differ == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_missing_buffer_or_barrier_is_reported(fault: str, faulty: Path) -> None:
    reports = {
        "thread": "WARNING: ThreadSanitizer: data race",
        "address,undefined": "AddressSanitizer: heap-buffer-overflow",
    }
    sanitizers = FAULTS[fault][0]
    assert reports[sanitizers] in exercise(sanitizers, "float", faulty, fault).stderr
