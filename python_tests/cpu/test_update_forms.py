"""The forms of the continual update in the kernels: whichever is run, it is the reference's update."""

from __future__ import annotations

import copy
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from agreement import Results, assert_agreement, results_of
from problems import Problem, random_problem
from torch import Tensor
from variants import copy_of

import ceprop_cuda as cep
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import Circuit, Nudge

PHASES = {"free_steps": 20, "nudged_steps": 15}


class Setting(NamedTuple):
    """Rates and nudge are those of the presets with as many layers."""

    sizes: tuple[int, ...]
    batch: int
    lr: tuple[float, ...]
    beta: float
    cheaper: tuple[str, str]  # forms of the updates of the input's connection and of the inner ones, tied


SETTINGS = [
    Setting((784, 128, 10), 4, (0.0056, 0.0028), 0.2, ("low_rank", "low_rank")),
    Setting((784, 128, 10), 20, (0.0056, 0.0028), 0.2, ("low_rank", "literal")),
    Setting((100, 96, 96, 10), 7, (0.01, 0.0018, 0.00018), 0.5, ("low_rank", "low_rank")),
    Setting((5, 96, 96, 10), 20, (0.01, 0.0018, 0.00018), 0.5, ("literal", "low_rank")),
    Setting((12, 40, 30, 10), 40, (0.01, 0.0018, 0.00018), 0.5, ("literal", "literal")),
]


def name_of(setting: Setting) -> str:
    return "-".join([*map(str, setting.sizes), f"B{setting.batch}"])


def dark(x: Tensor, seed: int) -> Tensor:
    """``x`` with four fifths of its pixels black, as in MNIST: with brighter ones such rates make learning unstable."""
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.2)


def problem_of(setting: Setting, feedback: str, dtype: torch.dtype, seed: int) -> tuple[Problem, Nudge]:
    problem = random_problem(setting.sizes, setting.batch, feedback=feedback, dtype=dtype, seed=seed)
    return problem._replace(x=dark(problem.x, seed)), Nudge(problem.target, setting.beta)


def step(update: str, lr: list[float], module: ModuleType, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    form = {} if module is reference else {"update": update}
    return results_of(module.cep_step(copy_of(circuit), x, nudge, **PHASES, lr=lr, **form), circuit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("update", ["literal", "low_rank", "auto"])
@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_all_forms_agree_with_the_reference(
    setting: Setting, feedback: str, times: int, update: str, dtype: torch.dtype
) -> None:
    # A hundred times the presets' rates change weights by up to several times themselves. Learning is unstable then and
    # makes a rounding, on either side, an error of any size: the median of several draws counts.
    seeds, summary = (1, max) if times == 1 else (9, median)
    draws = [problem_of(setting, feedback, dtype, seed) for seed in range(seeds)]
    assert_agreement(partial(step, update, [times * rate for rate in setting.lr]), draws, summary)


def learned(net: cep.Network, setting: Setting, **settings: Any) -> tuple[tuple[str, str], list[Tensor]]:
    """The forms that the plan of a step names, and what a copy of ``net`` becomes and sees in it."""
    net = copy.deepcopy(net)
    rule = cep.CEP(net, **PHASES, beta=setting.beta, lr=setting.lr, backend="fused", **settings)
    x = dark(torch.rand(setting.batch, setting.sizes[0], generator=torch.Generator().manual_seed(0)), 0)
    ran = rule.step(x, torch.arange(setting.batch) % 10)
    forms = cep.plan(net, rule, setting.batch).forms
    return (forms["input"], forms["inner"]), [*net.parameters(), *ran.nudged_states]


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_auto_runs_the_forms_that_the_plan_names(setting: Setting, feedback: str) -> None:
    net = cep.mlp(*setting.sizes, feedback=feedback)
    # This weight decay is 0 in float32. But the inner low rank is exact with none only, so it is not taken.
    mixed: dict[str, Any] = {"update": "low_rank", "weight_decay": 1e-300}
    runs = dict(learned(net, setting, **wish) for wish in ({"update": "literal"}, mixed, {"update": "low_rank"}))
    only_tied = {("low_rank", "low_rank")} if feedback == "tied" else set()
    assert runs.keys() == {("literal", "literal"), ("low_rank", "literal")} | only_tied
    forms, found = learned(net, setting)
    assert forms == (setting.cheaper if feedback == "tied" else (setting.cheaper[0], "literal"))
    for others, wanted in runs.items():
        assert all(map(torch.equal, found, wanted)) == (others == forms)
