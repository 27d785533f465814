"""Whether a change of the code changes results: the bits of a fixed set of calls, before it and after.

    python benchmarks/bits/compare.py --record /tmp/before.json
    python benchmarks/bits/compare.py /tmp/before.json [--only reference cpu]

The calls are all three ops on every variant of python_tests: dynamics, feedback, losses, activations, schedules,
shapes, chains of convolutions; nudged on one side and on both, with and without tolerance. They run by the reference;
by the kernels of every CPU instruction set that this machine has, on one thread and on three; and under the emulation
by teams of a GPU's blocks, on what they take, and by the sequence of a library's calls on chains of convolutions. The
bits hold for this machine and this torch. Exit status 1 if any differ, with the names of the calls.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENGINES = ("reference", "cpu", "teams", "library")


def found_by(engines: list[str]) -> dict[str, dict[str, str]]:
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python_tests" / "support")]
    os.environ.setdefault("CEPROP_CPU_OVERSUBSCRIBE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import calls  # brings torch, which reads the environment

    found: dict[str, dict[str, str]] = {}
    for engine in engines:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found[engine] = calls.digests(engine, Path(folder))
        print(f"{engine}: {len(found[engine])} results, {time.perf_counter() - began:.0f} s", flush=True)
    return found


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--record", action="store_true", help="write the file; else compare with it")
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES), help="by these alone")
    arguments = parser.parse_args()
    before = {} if arguments.record else json.loads(arguments.file.read_text())
    found = found_by(arguments.only)
    if arguments.record:
        arguments.file.write_text(json.dumps(found, indent=0))
        return 0
    differ = [
        name
        for engine, results in found.items()
        for name in sorted({*results, *before.get(engine, {})})
        if results.get(name) != before.get(engine, {}).get(name)
    ]
    for name in differ[:40]:
        print(f"differs: {name}")
    print(f"{len(differ)} of {sum(map(len, found.values()))} results differ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
