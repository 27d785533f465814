"""Runs contenders against each other, a row of results for each."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from .. import ops
from .agreement import assert_agreement, outcome, shortened, to_check
from .by_jax import ByJax
from .cases import Case, needed_gflop
from .contenders import MAY_FAIL, Build, contenders
from .measure import CLOCKS, SLOW, Timed, interleaved, matrix_product, prepared, restore, spread

SECONDS_AT_MOST = 30.0  # of one step; a contender that would take longer is skipped
CHECKED_IN_FLOAT64 = ("fused", "same_algebra", "autograd", "fused_sgd", "jax", "jax_gram")  # beside float32


@dataclass(frozen=True)
class Row:
    """One contender on one case. Without a time if ``status`` is not "ok"."""

    case: str
    rule: str
    sizes: str  # units of every layer, the input first
    batch: int
    free_steps: int
    nudged_steps: int
    threads: int  # of the CPU; 0 on a GPU, where they have no part
    contender: str
    status: str  # "ok", "skipped: ..." or "n/a: ..."
    rounds: int = 0
    repeats: int = 0  # in each round, of which the median counts
    ms: float | None = None  # of one step: median over the rounds, then quartiles
    ms_q1: float | None = None
    ms_q3: float | None = None
    over_fused: float | None = None  # this time over _fused()'s of the same round: median, quartiles
    over_fused_q1: float | None = None
    over_fused_q3: float | None = None
    needed_gflop: float | None = None  # of the cheapest algorithm, not of the contender's: see cases.needed_gflop
    needed_gflop_per_s: float | None = None
    mm_gflop_per_s: float | None = None  # of torch.mm of square matrices, measure.MM_SIZES, in the same rounds
    fraction_of_mm: float | None = None
    predicted_ms: float | None = None  # on a GPU, by _predicted_ms()


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # by default, PyTorch rounds what convolutions multiply
def run(case: Case, threads: int, rounds: int) -> list[Row]:
    """Check and time all contenders on ``case``; Disagreement if one computes something else than the reference."""
    if case.device == "cpu":
        torch.set_num_threads(threads)
    with _exactly_so_many():
        return _run(case, threads, rounds)


@contextmanager
def _exactly_so_many() -> Iterator[None]:
    """Calls take the threads that torch is set to, whatever the library finds out about fewer."""
    name = "CEPROP_CPU_OVERSUBSCRIBE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _run(case: Case, threads: int, rounds: int) -> list[Row]:
    builds = contenders(case.device, case.preset.convolutions is not None, case.rule)
    few = shortened(case)
    checked = {torch.float64: to_check(case), torch.float32: few}
    expected = {dtype: outcome(part, builds["eager"], dtype) for dtype, part in checked.items()}
    statuses: dict[str, str] = {}
    timed: dict[str, Timed] = {}
    for name, build in builds.items():
        dtypes = [torch.float32, *([torch.float64] if name in CHECKED_IN_FLOAT64 else [])]
        try:
            got = {dtype: outcome(checked[dtype], build, dtype) for dtype in dtypes}
        except Exception as error:
            if name not in MAY_FAIL:
                raise
            statuses[name] = f"n/a: {next(iter(str(error).splitlines()), type(error).__name__)}"
            continue
        for dtype, found in got.items():
            assert_agreement(checked[dtype], name, found, expected[dtype])
        step, reset = _step(few, build)
        clock = CLOCKS[case.device]
        seconds = prepared(step, reset, clock).seconds * case.steps / few.steps
        if seconds > SECONDS_AT_MOST:
            statuses[name] = f"skipped: est. {seconds:.0f} s"
            continue
        statuses[name] = "ok"
        step, reset = _step(case, build)
        timed[name] = prepared(step, reset, clock) if seconds < SLOW else Timed(step, seconds, reset, clock)
    product, gflop = matrix_product(case.device)
    times = interleaved({**timed, "mm": product}, rounds)
    mm = gflop / spread(times["mm"]).median
    rows = [_row(case, threads, name, status, timed.get(name), times, mm) for name, status in statuses.items()]
    return [replace(row, predicted_ms=_predicted_ms(case)) if row.contender == "fused" else row for row in rows]


def _step(case: Case, build: Build) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of ``case`` on a network of its own, and what gives that its first parameters back."""
    net, x, y = case.problem(torch.float32)
    start, step = copy.deepcopy(net), build(case, net)
    if isinstance(step, ByJax):
        step.load(x, y)
        return step.run, partial(step.load, x, y)
    return partial(step, x, y), partial(restore, net, start)


def _predicted_ms(case: Case) -> float | None:
    """What the planner of teams expects of all steps, by arithmetic: without what a call does before and after them.
    None of what teams do not run, or not in all steps."""
    if case.device == "cpu":
        return None
    net, x, _ = case.problem(torch.float32)
    continual = case.preset.continual and not case.relaxes_only
    plan = ops.launch_plan(net.circuit(), x, continual=continual)
    if plan["engine"] != "teams" or (continual and "moving_step_us" not in plan):
        return None
    free_us = plan["rounds"] * plan["step_us"]
    nudged_us = plan["moving_step_us"] if continual else free_us
    return (case.free_steps * free_us + case.nudged_steps * nudged_us) / 1e3


def _fused(name: str, times: Mapping[str, list[float]]) -> str:
    """The fused step that contender ``name`` is compared with: for jax, which moves EP's parameters, the one that moves
    them, too."""
    return "fused_sgd" if name == "jax" and "fused_sgd" in times else "fused"


def _row(
    case: Case,
    threads: int,
    name: str,
    status: str,
    timed: Timed | None,
    times: Mapping[str, list[float]],
    mm_gflop_per_s: float,
) -> Row:
    sizes = "-".join(map(str, case.sizes))
    row = Row(case.name, case.rule, sizes, case.batch, case.free_steps, case.nudged_steps, threads, name, status)
    if timed is None:
        return row
    seconds, gflop = spread(times[name]), needed_gflop(case)
    # A contender may have missed rounds that the fused kernels made, or the other way round.
    ratios = [a / b for a, b in zip(times[name], times.get(_fused(name, times), []), strict=False)]
    over_fused = spread(ratios) if ratios else (None, None, None)
    return replace(
        row,
        rounds=len(times[name]),
        repeats=timed.repeats,
        ms=1e3 * seconds.median,
        ms_q1=1e3 * seconds.low,
        ms_q3=1e3 * seconds.high,
        over_fused=over_fused[0],
        over_fused_q1=over_fused[1],
        over_fused_q3=over_fused[2],
        needed_gflop=gflop,
        needed_gflop_per_s=gflop / seconds.median,
        mm_gflop_per_s=mm_gflop_per_s,
        fraction_of_mm=gflop / seconds.median / mm_gflop_per_s,
    )
