"""A few hundred calls of the fuzzer in benchmarks/robustness, and whether it finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT
from project import ROOT, SUPPORT

SCRIPTS = ROOT / "benchmarks" / "robustness"

# Runs the fuzzer's calls 0 .. 149 with a fault in the library.
WITH_FAULT = """
import sys
sys.path[:0] = [{scripts!r}, {tests!r}]
import fuzz_judge
from ceprop_cuda.arguments import choices
from ceprop_cuda.spec import reference
{fault}
for number in range(150):
    verdict = fuzz_judge.judge(0, number)
    if verdict.fault is not None:
        print(verdict.fault)
        break
"""

FAULTS = {
    "numbers": "reference.readout_contrast = lambda *_, f=reference.readout_contrast: tuple(2 * t for t in f(*_))",
    "steps": "reference.STEPS_PER_CHECK = 5",
    "words": "choices.one_of = lambda name, value, choices: {choice: choice for choice in choices}[value]",
    "refusals": "choices.one_of = lambda name, value, choices: value",
}


def test_a_few_hundred_calls() -> None:
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), "--calls", "300", "--seed", "0"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 calls, 0 of them with a fault" in done.stdout


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    program = WITH_FAULT.format(scripts=str(SCRIPTS), tests=str(SUPPORT), fault=FAULTS[name])
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_crash_is_reported_with_what_repeats_it(tmp_path: Path) -> None:
    """A package that stands before the fuzzer's judge ends the process in call 3."""
    crash = "def judge(seed, number):\n    import os\n    number == 3 and os.abort()\n"
    crash += "    return __import__('collections').namedtuple('V', 'kind fault about')('fine', None, '')\n"
    (tmp_path / "fuzz_judge.py").write_text(crash)
    (tmp_path / "fuzz.py").write_text((SCRIPTS / "fuzz.py").read_text())
    command = [sys.executable, str(tmp_path / "fuzz.py"), "--calls", "6", "--seed", "9"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "the process ended with -6 in call 3" in done.stdout
    assert "fuzz.py --seed 9 --only 3" in done.stdout
    assert "6 calls, 1 of them with a fault" in done.stdout  # the others were made
