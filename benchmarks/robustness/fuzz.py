"""Calls by chance of the raw ops and of the public API, right ones and wrong ones.

    python benchmarks/robustness/fuzz.py --calls 20000 --seed 0 [--jobs 2]
    python benchmarks/robustness/fuzz.py --seed 0 --only 1234

A right call has to agree with the reference; a wrong one has to be refused in a sentence of ours, with all tensors
bitwise as before. Calls run in child processes, so that a crash is a result, too: it is reported with the command that
repeats it. Prints how many calls of each kind there were; exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CALLS_OF_A_CHILD = 500
SECONDS_OF_A_CHILD = 600  # of which it needs five


@dataclass
class Report:
    """What has come of calls."""

    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def child(seed: int, first: int, end: int) -> None:
    """Make calls one after the other; a line before each, and one that tells what came of it."""
    import fuzz_judge  # brings torch, for which the parent has no use

    for number in range(first, end):
        print(json.dumps({"begins": number}), flush=True)
        verdict = fuzz_judge.judge(seed, number)
        print(json.dumps({"number": number, **verdict._asdict()}), flush=True)


def run_child(seed: int, first: int, end: int, report: Report) -> int:
    """Makes calls in a process of their own; returns the first that it has not come to."""
    command = [sys.executable, __file__, "--seed", str(seed), "--child", str(first), str(end)]
    folders = [str(HERE), str(HERE.parents[1] / "python_tests" / "support"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder),  # an empty one would be the current
        "OMP_WAIT_POLICY": "passive",  # more threads than cores must not spin
        "CEPROP_CPU_OVERSUBSCRIBE": "1",  # takes as many threads as calls ask for
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        out, err = process.communicate(timeout=SECONDS_OF_A_CHILD)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    begun = ended = None
    for line in out.splitlines():
        said = json.loads(line)
        if "begins" in said:
            begun = said["begins"]
            continue
        ended = said["number"]
        report.kinds[said["kind"]] += 1
        if said["fault"] is not None:
            report.faults.append(f"{said['kind']}: {said['fault']}\n    {said['about']}\n    {again(seed, ended)}")
    if process.returncode == 0:
        return end
    if begun is None:
        raise SystemExit(f"no call could begin: {err}")
    last_words = err.strip().splitlines()[-1:] or ["no last words"]
    report.kinds["crash"] += 1
    when = "after" if begun == ended else "in"  # an end after its last call is a crash as well
    report.faults.append(
        f"the process ended with {process.returncode} {when} call {begun}: {last_words[0]}\n    {again(seed, begun)}"
    )
    return begun + 1


def again(seed: int, number: int) -> str:
    return f"python benchmarks/robustness/fuzz.py --seed {seed} --only {number}"


def fuzz(seed: int, calls: int, jobs: int) -> Report:
    """``calls`` calls, by ``jobs`` processes at a time."""
    report = Report()

    def run(first: int) -> None:
        end = min(first + CALLS_OF_A_CHILD, calls)
        while first < end:
            first = run_child(seed, first, end, report)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, range(0, calls, CALLS_OF_A_CHILD)))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", type=int, metavar="N", help="the call of this number, in a process of its own")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        first, end = arguments.child
        child(arguments.seed, first, end)
        return 0
    began = time.monotonic()
    if arguments.only is not None:
        report = Report()
        run_child(arguments.seed, arguments.only, arguments.only + 1, report)
    else:
        report = fuzz(arguments.seed, arguments.calls, arguments.jobs)
    for kind, count in sorted(report.kinds.items()):
        print(f"{count:8}  {kind}")
    print("\n".join(report.faults))
    total, seconds = sum(report.kinds.values()), time.monotonic() - began
    print(f"{total} calls, {len(report.faults)} of them with a fault, seed {arguments.seed}, {seconds:.0f} s")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
