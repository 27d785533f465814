"""What a step of the dynamics takes on a GPU, beside the planner's estimate: by differences between training steps, one
with 2 free and 2 nudged steps, one with 50 more free ones, one with 10 more nudged ones.

A case runs by teams of blocks ("teams"; with convolutions the phases in which weights rest) where it can, else by
PyTorch's operators ("library"), or as --engine says.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ceprop_cuda import ops
from ceprop_cuda.bench.cases import Case, chosen_cases
from ceprop_cuda.bench.contenders import ENGINES, by_engine
from ceprop_cuda.bench.measure import CLOCKS, spread
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import write_csv

CASES = ["*-1h-b20", "*-2h-b20", "p-3h-b20", "*-1h-b*", "*-2h-b*", "*-2h-n*", "p-conv-b20", "c-ep-conv-b20"]
FREE, NUDGED = 50, 10
CALLS = 20  # of which the median counts


@dataclass(frozen=True)
class Steps:
    """Times of one case; what is too small to measure may come out below 0."""

    case: str
    engine: str  # "teams" or "library", or "" on a CPU
    team: str  # in the free phase: "block", "cluster" or "grid", or "" without teams
    blocks: int  # of the launch
    predicted_free_us: float  # by the planner; 0 without teams
    predicted_nudged_us: float  # 0 as well where PyTorch's operators run these steps
    free_us: float
    nudged_us: float
    once_us: float  # a training step of 2 free and 2 nudged steps
    ms: float  # a training step with all of its steps


def planned(case: Case) -> dict[str, Any]:
    """How the case runs on a GPU where the engine is chosen by the package."""
    net, x, _ = case.problem(torch.float32)
    return ops.launch_plan(net.circuit(), x, continual=case.preset.continual)


def engine_of(case: Case, asked: str = "auto") -> str:
    """By which the case is timed: "" on a CPU."""
    if case.device == "cpu":
        return ""
    return asked if asked != "auto" else "teams" if planned(case)["engine"] == "teams" else "library"


def microseconds(case: Case, engine: str, free: int, nudged: int) -> float:
    """The median of some training steps with these numbers of steps of the dynamics."""
    shorter = case.of_steps(free, nudged)
    net, x, y = shorter.problem(torch.float32)
    step = by_engine(engine, shorter, net)
    clock = CLOCKS[case.device]
    clock(lambda: step(x, y), 3)
    return 1e6 * spread(clock(lambda: step(x, y), CALLS)).median


def measured(case: Case, engine: str) -> Steps:
    short, with_free, with_nudged = (microseconds(case, engine, *n) for n in ((2, 2), (2 + FREE, 2), (2, 2 + NUDGED)))
    plan = planned(case) if engine == "teams" else {}
    free_us = plan.get("rounds", 0) * plan.get("step_us", 0.0)
    return Steps(
        case.name,
        engine,
        plan.get("team", ""),
        plan.get("launch_blocks", 0),
        free_us,
        plan.get("moving_step_us", free_us if not case.preset.continual else 0.0),
        (with_free - short) / FREE,
        (with_nudged - short) / NUDGED,
        short,
        microseconds(case, engine, case.free_steps, case.preset.nudged_steps) / 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="PATTERN")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    cases = [case for case in chosen_cases(arguments.cases, arguments.device) if not case.relaxes_only]
    facts = environment(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: list[Steps] = []
    for case in tqdm(cases):
        found.append(measured(case, engine_of(case, arguments.engine)))
        write_csv(arguments.out / f"{arguments.device}_steps.csv", found, facts)


if __name__ == "__main__":
    main()
