"""One call of the fuzzer by its number: what it is, and whether what came of it is right."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import fuzz_api_mistakes
import fuzz_op_mistakes
import torch
from agreement import largest, unpooled_at_the_first
from fuzz_calls import Call, Outcome, described, draw_call, is_same_run
from fuzz_modules import MODULES, Changed, bits
from torch import Tensor
from variants import CHANGE_OVER_STATE, CONTRAST_OF_MAPS, TOLERANCES

from ceprop_cuda import ops
from ceprop_cuda.spec import connections, reference

LONGEST_MESSAGE = 400
# Words of C++, of torch's dispatcher and of errors that Python raises by itself: none of ours has them.
INTERNAL = re.compile(
    r"at::|c10::|std::|aten::|torch\._C|_C\.|\.cpp|\.cuh?\b|\.h:\d|INTERNAL ASSERT|Declaration:|Traceback|_checked_|"
    r"0x[0-9a-f]{6}|' object (is|has|cannot)|has no attribute|unsupported operand|must be real number, not|"
    r"ambiguous|invalid literal|not supported between|unhashable|takes \d+ positional|too large to convert"
)
# In float32 a single draw may be unlucky, see test_kernels.check: bounds far above rounding, far below a mistake.
ROUNDING = {"factor": 20, "floor": 2e-5}
DRAWS = 3  # ... and a kink or a maximum that rounding moves: an error has to show with other numbers, too


class Verdict(NamedTuple):
    kind: str  # what was called, in a few words
    fault: str | None  # what is wrong, None if nothing is
    about: str  # the call in one line


def judge(seed: int, number: int) -> Verdict:
    """Make the call of this number and judge it."""
    draw = random.Random(f"{seed}-{number}")
    torch.set_num_threads(draw.randint(1, 4))
    chance = draw.random()
    if chance < 0.5:
        return judge_right_call(draw)
    if chance < 0.75:
        return judge_wrong_op_call(draw)
    return judge_wrong_api_call(draw)


# ---------------------------------------------------------------------------------------------------------------
# Right calls


def judge_right_call(draw: random.Random) -> Verdict:
    name = draw.choice(list(MODULES))
    module = MODULES[name](draw)
    state = draw.getstate()
    call = draw_call(draw)
    layers = "convolutions" if call.problem.circuit.structure.convolutions else "dense"
    kind = f"{name} {call.op} {str(call.problem.x.dtype)[6:]} {layers}"
    try:
        found = call.run(module)
        if draw.random() < 0.3:
            torch.set_num_threads(draw.randint(1, 4))
            if not is_same_run(call, found, call.run(module)):
                return Verdict(kind, "another number of threads gives other numbers", described(call))
        fault = disagreement(call, found)
        if fault is not None and call.problem.x.dtype == torch.float32:
            fault = _with_other_numbers(draw, state, module, fault)
    except Changed as changed:
        fault = str(changed)
    except (ValueError, TypeError, RuntimeError) as error:
        fault = f"refused: {type(error).__name__}: {error}"
    return Verdict(kind, fault, described(call))


def _with_other_numbers(draw: random.Random, state: object, module: Any, fault: str) -> str | None:
    """``fault`` if the same call with other weights and inputs shows one as well, every time."""
    for other in range(1, DRAWS):
        draw.setstate(state)  # type: ignore[arg-type]
        with mock.patch.object(draw, "randrange", lambda _, other=other: other):
            call = draw_call(draw)
        if disagreement(call, call.run(module)) is None:
            return None
    return fault


def disagreement(call: Call, found: Outcome) -> str | None:
    """Where ``found`` is farther from the reference in float64 than the tolerances of the tests grant, or None."""
    precise = call.in_float64()
    fault = _farther_than_granted(call, found, precise, precise.run(reference))
    if fault is None or all(made.pool != "max" for made in call.problem.circuit.structure.convolutions):
        return fault
    # Of equal maxima rounding may have chosen another than the first, on either side; see agreement.py.
    with mock.patch.object(connections, "_unpooled", unpooled_at_the_first):
        return _farther_than_granted(call, found, precise, precise.run(reference))


def _farther_than_granted(call: Call, found: Outcome, precise: Call, exact: Outcome) -> str | None:
    """``exact`` is what the reference gives for ``precise``, which is the call in float64."""
    if not torch.equal(found.steps, exact.steps):
        return f"steps {found.steps.tolist()} in place of {exact.steps.tolist()}"
    is_float64 = call.problem.x.dtype == torch.float64
    plain = exact if is_float64 else call.run(reference)
    floor = TOLERANCES[torch.float64]["floor"] if is_float64 else ROUNDING["floor"]
    factor = 0 if is_float64 else ROUNDING["factor"]
    beta = 1.0 if call.nudge is None else abs(call.nudge.beta)
    # What a contrast subtracts: products of states, or of an input, summed over the batch.
    seen = [call.problem.x.double(), *exact.states]
    products = max(float(s.norm()) for s in seen) ** 2 / len(call.problem.x)
    maps = CONTRAST_OF_MAPS if call.problem.circuit.structure.convolutions else 1
    before = precise.problem.circuit.parameters()
    rate = max(call.settings.get("lr", [0.0]))
    kinds = [
        ("states", floor, 0.0, *(o.states for o in (found, plain, exact))),
        ("gradients", floor / beta * maps, products, *(o.gradients for o in (found, plain, exact))),
        ("parameters", floor, rate * products * maps / beta, *(o.parameters for o in (found, plain, exact))),
    ]
    if is_float64 and exact.parameters:
        changes = ([p - q for p, q in zip(o.parameters, before, strict=True)] for o in (found, plain, exact))
        least = max(largest(before) / CHANGE_OVER_STATE, rate * products * maps / beta)
        kinds.append(("changes", CHANGE_OVER_STATE * floor, least, *changes))
    for name, granted, least, got, rounded, wanted in kinds:
        if [(g.dtype, g.shape) for g in got] != [(call.problem.x.dtype, w.shape) for w in wanted]:
            return f"{name} of other shapes or dtypes"
        for index, (g, r, w) in enumerate(zip(got, rounded, wanted, strict=True)):
            size = max(w.norm().item(), 0.1 * largest(wanted), least) or 1.0
            error, unavoidable = ((t.double() - w).norm().item() / size for t in (g, r))
            if not error <= granted + factor * unavoidable:
                return f"{name}[{index}] off by {error:.2g}, {granted + factor * unavoidable:.2g} are granted"
    return None


# ---------------------------------------------------------------------------------------------------------------
# Wrong calls


def judge_wrong_op_call(draw: random.Random) -> Verdict:
    mistake = draw.choice(fuzz_op_mistakes.MISTAKES)
    label = None
    while label is None:
        call = fuzz_op_mistakes.op_call(draw_call(draw))
        label = mistake(draw, call)
    kind = f"op, {mistake.__name__.replace('_', ' ')}"
    tensors = [t for _, t in call.tensors() if not t.is_meta]
    return Verdict(kind, fault_of_refusal(call.run, tensors), f"{call.op}: {label}")


def judge_wrong_api_call(draw: random.Random) -> Verdict:
    mistake = draw.choice(fuzz_api_mistakes.MISTAKES)
    call = mistake(draw)
    tensors = [t for t in call.tensors if not t.is_meta]
    net = call.net
    steps = None if net is None else net.free_steps
    fault = fault_of_refusal(call.run, tensors + ([] if net is None else list(net.parameters())))
    if fault is None and net is not None:
        if any(p.grad is not None for p in net.parameters()):
            fault = "left gradients"
        elif net.free_steps != steps:
            fault = f"free_steps became {net.free_steps}"
    return Verdict(f"api, {mistake.__name__.replace('_', ' ')}", fault, call.label)


def fault_of_refusal(run: Callable[[], object], tensors: Sequence[Tensor]) -> str | None:
    """What is wrong with how a call is refused: it is not, not in words of ours, or something has changed."""
    before = [bits(t) for t in tensors]
    try:
        run()
    except (ValueError, TypeError, RuntimeError) as error:
        fault = fault_of_error(error)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]
    else:
        fault = "not refused"
    if not all(torch.equal(bits(t), b) for t, b in zip(tensors, before, strict=True)):
        return f"a tensor has changed; {fault or 'refused'}"
    return fault


def fault_of_error(error: Exception) -> str | None:
    message = str(error)
    shown = f"{type(error).__name__}: {message[:LONGEST_MESSAGE]}"
    if len(message) >= LONGEST_MESSAGE:
        return f"a message of {len(message)} characters: {shown}"
    if INTERNAL.search(message) or "\n" in message.strip():
        return f"no words of ours: {shown}"
    # Ours are raised in the package or, checks of the ops, where torch calls them.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
    if Path(ops.__file__).parent not in file.parents and (file.parent.name, file.name) != ("torch", "_ops.py"):
        if file.name.startswith("fuzz_"):  # the call itself: raised below Python
            return None
        return f"raised in {file.name}: {shown}"
    return None
