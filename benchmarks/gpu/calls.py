"""What training steps of cases of `ceprop bench` ask of the host and of a GPU: how long the host takes for one, which
does not wait for the GPU, and what the GPU runs for it.

`calls.py CASE... --out DIR` writes DIR/calls.csv, a line for each case and kernel.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ceprop_cuda.bench.cases import chosen_cases
from ceprop_cuda.bench.contenders import by_engine
from ceprop_cuda.bench.measure import clock_of_cpu, spread
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv

WARM, TIMED, PROFILED = 5, 30, 10  # steps


@dataclass(frozen=True)
class Call:
    """A kernel of a training step, or one without a name on a CPU."""

    case: str
    host_us: float  # of the whole step, the median
    kernel: str
    launches: float  # in a step
    us: float  # of the GPU, in a step


def kernels(step: Callable[[], object]) -> dict[str, list[float]]:
    """By name the microseconds of each launch in some steps on a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in watched.events() or ():
        if event.device_type == DeviceType.CUDA:
            found[event.name].append(event.time_range.elapsed_us())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE", help="or a pattern")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Call] = []
    for case in chosen_cases(arguments.cases, arguments.device):
        net, x, y = case.problem(torch.float32)
        step = partial(by_engine("", case, net), x, y)
        clock_of_cpu(step, WARM)
        if on_gpu:
            torch.cuda.synchronize()
        host = 1e6 * spread(clock_of_cpu(step, TIMED)).median
        print(f"{case.name}: {host:.1f} us of the host")
        found = kernels(step) if on_gpu else {"": []}
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1])):
            rows.append(Call(case.name, host, name, len(times) / PROFILED, sum(times) / PROFILED))
            if name:
                print(f"  {rows[-1].us:9.2f} us in {rows[-1].launches:g} launches: {name[:80]}")
        write_csv(arguments.out / "calls.csv", rows, environment(arguments.device))


if __name__ == "__main__":
    main()
