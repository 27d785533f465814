"""What the default number of threads is worth where other programs keep a core busy, beside one thread and two.

For each preset the steps a second of three processes, one after the other in each round: the default, where the library
finds out itself how many threads pay, and exactly one and two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ceprop_cuda.presets import PRESETS

PRESET_NAMES = [name for name, preset in PRESETS.items() if preset.convolutions is None]
MODES = {"default": {}, "1 thread": {"CEPROP_CPU_OVERSUBSCRIBE": "1"}, "2 threads": {"CEPROP_CPU_OVERSUBSCRIBE": "1"}}
THREADS = {"default": 2, "1 thread": 1, "2 threads": 2}


def steps_a_second(name: str, seconds: float) -> float:
    """Of training steps on random samples, in this process."""
    preset = PRESETS[name]
    inputs = 64 if preset.data == "digits" else 784
    rule = preset.rule(preset.network(inputs, 10))
    x, y = torch.rand(preset.batch_size, inputs), torch.randint(10, (preset.batch_size,))
    rule.step(x, y)
    began, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        rule.step(x, y)
        steps += 1
    return steps / spent


def in_a_process(name: str, mode: str, seconds: float) -> float:
    command = [sys.executable, __file__, "--one", name, "--threads", str(THREADS[mode]), "--seconds", str(seconds)]
    done = subprocess.run(command, env=os.environ | MODES[mode], capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def other_load(processes: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def table(names: Sequence[str], loads: Sequence[int], rounds: int, seconds: float) -> Iterator[str]:
    yield "load,preset,default,1 thread,2 threads,default / better"
    for load_count in loads:
        with other_load(load_count):
            for name in names:
                found = [[in_a_process(name, mode, seconds) for mode in MODES] for _ in range(rounds)]
                ratio = statistics.median(default / max(one, two) for default, one, two in found)
                medians = [statistics.median(column) for column in zip(*found, strict=True)]
                yield f"{load_count},{name},{','.join(f'{of:.0f}' for of in medians)},{ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=PRESET_NAMES, choices=PRESET_NAMES, metavar="NAME")
    parser.add_argument("--load", type=int, nargs="+", default=[0, 1], help="busy processes beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each process trains")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        torch.set_num_threads(given.threads)
        print(steps_a_second(given.one, given.seconds))
        return
    for line in table(given.presets, given.load, given.rounds, given.seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
