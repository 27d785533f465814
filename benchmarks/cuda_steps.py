"""What a step of the dynamics takes the fused kernels on a GPU, beside the launch planner's estimate: by differences
between training steps, one with 2 free and 2 nudged steps, one with 50 more free ones, one with 10 more nudged ones.

Convolutions run by a library's calls. What teams of blocks take runs by them as well.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ceprop_cuda import ops
from ceprop_cuda.bench.cases import Case, chosen_cases
from ceprop_cuda.bench.contenders import ENGINES, by_engine
from ceprop_cuda.bench.measure import CLOCKS, spread
from ceprop_cuda.environment import environment
from ceprop_cuda.tables import write_csv

CASES = ["*-1h-b20", "*-2h-b20", "c-ep-1h-b*", "ep-2h-b*", "*-2h-n*", "p-3h-b20", "p-conv-b20"]
FREE, NUDGED = 50, 10
CALLS = 20  # of which the median counts


@dataclass(frozen=True)
class Steps:
    """Times of one case; what is too small to measure may come out below 0."""

    case: str
    engine: str  # "launch", "teams" or "library", or "" on a CPU
    exchange: str  # where the plan keeps the states, or "" on a CPU
    blocks: int
    predicted_us: float  # of a free step in one launch; else 0
    free_us: float
    nudged_us: float
    once_us: float  # a training step of 2 free and 2 nudged steps
    ms: float  # a training step with all of its steps


def engines(case: Case) -> list[str]:
    """By which the case is timed."""
    if case.device == "cpu":
        return [""]
    if case.preset.convolutions is not None:
        return ["library"]
    net, x, _ = case.problem(torch.float32)
    by_teams = not case.preset.continual and ops.obstacle(net.circuit(), x, engine="teams") is None
    return ["launch", "teams"] if by_teams else ["launch"]


def microseconds(case: Case, engine: str, free: int, nudged: int) -> float:
    """The median of some training steps with these numbers of steps of the dynamics."""
    shorter = case.of_steps(free, nudged)
    net, x, y = shorter.problem(torch.float32)
    step = by_engine(engine, shorter, net)
    clock = CLOCKS[case.device]
    clock(lambda: step(x, y), 3)
    return 1e6 * spread(clock(lambda: step(x, y), CALLS)).median


def measured(case: Case, engine: str) -> Steps:
    net, x, _ = case.problem(torch.float32)
    named = ENGINES.get(engine, "auto")
    plan = ops.launch_plan(net.circuit(), x, engine=named) if case.device == "cuda" else {}
    short, with_free, with_nudged = (microseconds(case, engine, *n) for n in ((2, 2), (2 + FREE, 2), (2, 2 + NUDGED)))
    return Steps(
        case.name,
        engine,
        plan.get("exchange", ""),
        plan.get("blocks", 0),
        plan.get("step_us", 0.0),
        (with_free - short) / FREE,
        (with_nudged - short) / NUDGED,
        short,
        microseconds(case, engine, case.free_steps, case.preset.nudged_steps) / 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="PATTERN")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    cases = [case for case in chosen_cases(arguments.cases, arguments.device) if not case.relaxes_only]
    facts = environment(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: list[Steps] = []
    for case, engine in tqdm([(one, engine) for one in cases for engine in engines(one)]):
        found.append(measured(case, engine))
        write_csv(arguments.out / f"{arguments.device}_steps.csv", found, facts)


if __name__ == "__main__":
    main()
