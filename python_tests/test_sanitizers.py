"""The portable kernels under the compiler's sanitizers: no data race between workers, no step beyond their memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def exercise(folder: Path, sanitizers: str, csrc: Path = ROOT / "csrc") -> subprocess.CompletedProcess[str]:
    """Compile exercise.cpp against the kernels in ``csrc`` with these sanitizers, and run it."""
    program = folder / "exercise"
    source = csrc.parent / "python_tests" / "sanitizers" / "exercise.cpp"
    flags = ["-std=c++20", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-math-errno", "-fno-trapping-math"]
    threads = [] if sanitizers == "thread" else ["-fopenmp"]
    files = [str(source), str(csrc / "cpu" / "kernels_default.cpp")]
    built = subprocess.run(
        ["g++", *flags, *threads, *files, "-o", str(program), "-pthread"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_nothing_to_report(sanitizers: str, tmp_path: Path) -> None:
    done = exercise(tmp_path, sanitizers)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr[:4000]
    assert done.stdout.count(", 0 differ") == 2


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        # A step that overwrites states which slow workers still read.
        ("relaxation.h", "ring = 3, kept_free = 3", "ring = 2, kept_free = 3"),
        # Low-rank updates that use the others' matrices before they are complete.
        ("low_rank_update.h", "      }\n    worker.wait();", "      }"),
    ],
)
def test_a_missing_buffer_or_barrier_is_reported(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    for folder in ("csrc", "python_tests/sanitizers"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    faulty = tmp_path / "csrc" / "cpu" / file
    text = faulty.read_text()
    assert text.count(right) == 1
    faulty.write_text(text.replace(right, wrong))
    assert "WARNING: ThreadSanitizer: data race" in exercise(tmp_path, "thread", tmp_path / "csrc").stderr
