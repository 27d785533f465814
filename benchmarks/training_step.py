"""One training step of each preset: the fused kernels against the reference, in the same process, in turn.

    python benchmarks/training_step.py [PRESET ...]

Prints a Markdown table: medians over rounds in which both run one after the other, and the smallest and largest ratio
of a round. Before anything is timed, both do the same step in float64 and must agree.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.presets import PRESETS, Preset

INPUTS, CLASSES = 784, 10
MILLISECONDS_PER_ROUND = 150.0


def training_step(preset: Preset, net: cep.Network, backend: str) -> Callable[[torch.Tensor, torch.Tensor], object]:
    rule = preset.rule(net, backend=backend)
    return rule.step if isinstance(rule, cep.CEP) else rule.backward


def check(name: str, preset: Preset) -> None:
    """Both backends give the same parameters or gradients in float64."""
    nets = [preset.network(INPUTS, CLASSES).double()]
    nets.append(copy.deepcopy(nets[0]))
    x, y = torch.rand(preset.batch_size, INPUTS, dtype=torch.float64), torch.randint(CLASSES, (preset.batch_size,))
    for net, backend in zip(nets, ("fused", "reference"), strict=True):
        torch.manual_seed(1)  # the same sign of beta
        training_step(preset, net, backend)(x, y)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        for a, b in ((p, q), (p.grad, q.grad)):
            if a is not None and (a - b).norm() > 1e-9 * b.norm():
                raise SystemExit(f"{name}: the backends disagree by {(a - b).norm() / b.norm():.1e}")


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(preset: Preset, rounds: int) -> tuple[float, float, list[float]]:
    """Median milliseconds of the fused step and of the reference's, and the ratio of each round."""
    net = preset.network(INPUTS, CLASSES)
    x, y = torch.rand(preset.batch_size, INPUTS), torch.randint(CLASSES, (preset.batch_size,))
    steps = [partial(training_step(preset, net, backend), x, y) for backend in ("fused", "reference")]
    once = [milliseconds(step, 3) for step in steps]
    repeats = [max(3, int(MILLISECONDS_PER_ROUND / t)) for t in once]
    times = [[milliseconds(step, n) for step, n in zip(steps, repeats, strict=True)] for _ in range(rounds)]
    fused, reference = (statistics.median(column) for column in zip(*times, strict=True))
    return fused, reference, [b / a for a, b in times]


def machine() -> str:
    """What the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    kernels = ops.build_info()["cpu_kernels"]
    threads = torch.get_num_threads()
    return f"{cpu}, {threads} threads, {kernels} kernels, torch {torch.__version__}, commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in PRESETS if name != "digits"]
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"default: {' '.join(names)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    unknown = set(args.presets) - set(names)
    if unknown:
        parser.error(f"unknown presets {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(machine())
    print("\n| preset | fused, ms | reference, ms | times as fast | least - most |\n|---|---|---|---|---|")
    for name in args.presets or names:
        preset = PRESETS[name]
        check(name, preset)
        fused, reference, ratios = measure(preset, args.rounds)
        ratio = statistics.median(ratios)
        print(
            f"| {name} | {fused:.2f} | {reference:.1f} | {ratio:.1f} | {min(ratios):.1f} - {max(ratios):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
