"""How many kernels plain PyTorch launches."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ceprop_cuda.bench.cases import Case
from ceprop_cuda.bench.contenders import CONTENDERS


class Launches(TorchDispatchMode):
    """Counts the operators that would each launch a kernel: all but views and those that only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        if not is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view")):
            self.by_name[func._schema.name] += 1
        return func(*(args or ()), **(kwargs or {}))


@functools.cache
def eager_launches(case: Case) -> int:
    """Of a training step by the reference."""
    net, x, y = case.problem(torch.float32)
    step = CONTENDERS["eager"]()(case, net)
    step(x, y)
    with Launches() as launches:
        step(x, y)
    return sum(launches.by_name.values())


def eager_launches_of_steps(case: Case) -> tuple[int, int]:
    """Of a free and of a nudged step: the difference that one more makes."""
    few = eager_launches(case.of_steps(2, 2))
    return eager_launches(case.of_steps(3, 2)) - few, eager_launches(case.of_steps(2, 3)) - few
