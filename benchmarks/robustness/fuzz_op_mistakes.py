"""Calls of the raw ops with one argument that is wrong, drawn by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fuzz_calls import Call
from torch import Tensor

from ceprop_cuda.op_arguments import dynamics_arguments, parameters_of
from ceprop_cuda.spec.dynamics import state_shapes

NAN, INF = float("nan"), float("inf")
MOST_PLACES = 2**15 - 1
CHOICES = ("activation", "output_activation", "dynamics", "schedule", "feedback", "precision")
# Each is none of any choices.
WORDS = ("", "swish", "Sigmoid", "sigmoid ", "tied\0", "état", "x" * 60)
DTYPES = (torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64)


@dataclass
class OpCall:
    """The arguments of an op by name, in the order of its schema; tensors are the call's own."""

    op: str
    positional: dict[str, Any]
    settings: dict[str, Any]

    def run(self) -> object:
        return getattr(torch.ops.ceprop_cuda, self.op)(*self.positional.values(), **self.settings)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, given in self.positional.items():
            for index, tensor in enumerate(given if isinstance(given, list) else [given]):
                if tensor is not None:
                    yield (f"{name}[{index}]" if isinstance(given, list) else name), tensor

    def replaced(self, name: str, tensor: Tensor) -> None:
        """Put ``tensor`` in the place of the one of this name, as ``tensors`` has it."""
        name, _, index = name.partition("[")
        if index:
            self.positional[name] = [*self.positional[name]]
            self.positional[name][int(index[:-1])] = tensor
        else:
            self.positional[name] = tensor


def op_call(call: Call) -> OpCall:
    """The arguments with which ``call`` is one of its op, in tensors of its own."""
    circuit, x, _ = call.problem
    own = [
        [t.clone() for t in part] if isinstance(part, list) else part.clone()
        for part in (x, *parameters_of(circuit, x))
    ]
    positional: dict[str, Any] = dict(zip(("x", "weights", "biases", "feedback_weights"), own, strict=True))
    nudge = call.nudge
    settings = {**call.settings, **dynamics_arguments(circuit)}
    settings |= {"beta": nudge.beta if nudge else 0.0, "nudge_at": nudge.at if nudge else "state"}
    settings |= {"loss": nudge.loss if nudge else "mse"}
    target = None if nudge is None else nudge.target.clone()
    if call.op == "relax":
        positional |= {"states": [s.clone() for s in call.states or ()], "target": target}
        return OpCall(call.op, positional, settings)
    positional["target"] = target
    if call.op == "cep_step":
        shapes = state_shapes(circuit, x.shape[2:])
        positional["free_states"] = [x.new_zeros(len(x), *shape) for shape in shapes]
        positional["nudged_states"] = [
            x.new_zeros(len(x), *shape) for _ in range(1 + settings["symmetric"]) for shape in shapes
        ]
        settings["update"] = "auto"
    return OpCall(call.op, positional, settings)


# Each changes a right call to a wrong one and returns what it has done, or None where it has nothing to change.
Mistake = Callable[[random.Random, OpCall], "str | None"]


def another_shape(draw: random.Random, call: OpCall) -> str | None:
    name, tensor = draw.choice([(n, t) for n, t in call.tensors() if t.numel() > 0])
    list_name = name.partition("[")[0]
    shape = list(tensor.shape)
    # More units, or channels, may be right elsewhere; another width below never is.
    axis = 1 if list_name in ("x", "weights", "feedback_weights") else draw.randrange(len(shape))
    kind = draw.choice(("longer", "deeper", "empty"))
    if kind == "longer":
        shape[axis] += draw.choice((1, 7))
    elif kind == "deeper":
        shape.insert(draw.randrange(len(shape) + 1), draw.choice((1, 2)))
        if list_name == "x" and call.settings.get("pools") and len(shape) == 4:
            return None
    else:
        shape[0 if list_name == "x" else axis] = 0
        if list_name == "biases":  # there is none, which is right
            return None
    call.replaced(name, tensor.new_zeros(shape))
    return f"{name} of {shape}"


def another_dtype(draw: random.Random, call: OpCall) -> str | None:
    name, tensor = draw.choice([(n, t) for n, t in call.tensors() if t.numel() > 0])
    others = [*DTYPES, torch.float64 if tensor.dtype == torch.float32 else torch.float32]
    dtype = draw.choice([d for d in others if d != tensor.dtype])
    call.replaced(name, tensor.to(dtype))
    return f"{name} {dtype}"


def another_device(draw: random.Random, call: OpCall) -> str | None:
    tensors = [(n, t) for n, t in call.tensors() if t.numel() > 0]
    name, tensor = draw.choice(tensors)
    if len(tensors) == 1:
        return None
    call.replaced(name, tensor.to("meta"))
    return f"{name} on meta"


def another_count(draw: random.Random, call: OpCall) -> str | None:
    names = [n for n, given in call.positional.items() if isinstance(given, list) and n != "states"]
    name = draw.choice(names)
    given = call.positional[name]
    if given and draw.random() < 0.5:
        call.positional[name] = given[:-1] if draw.random() < 0.7 else []
        return f"fewer {name}"
    call.positional[name] = [*given, call.positional["x"].clone()]
    return f"more {name}"


def another_word(draw: random.Random, call: OpCall) -> str | None:
    names = list(CHOICES) + ["update"] * (call.op == "cep_step")
    if call.positional["target"] is not None:
        names += ["nudge_at", "loss"]
    name, word = draw.choice(names), draw.choice(WORDS)
    call.settings[name] = word
    return f"{name}={word!r}"


def another_number(draw: random.Random, call: OpCall) -> str | None:
    numbers: dict[str, tuple[float, ...]] = {
        "dt": (0.0, -0.0, -1.0, NAN, INF),
        "tolerance": (-1e-9, -1e-320, NAN, INF, -INF),
        **{
            name: (least - 1, -5, 2**31, 2**62, 2**63 - 1, -(2**63))
            for name, least in (("steps", 0), ("free_steps", 0), ("nudged_steps", 1))
            if name in call.settings
        },
        **({"weight_decay": (-1e-9, -1.0, NAN, INF, -INF)} if call.op == "cep_step" else {}),
        **({"beta": (0.0, -0.0, NAN, INF, -INF)} if call.positional["target"] is not None else {}),
    }
    name = draw.choice(list(numbers))
    call.settings[name] = draw.choice(numbers[name])
    return f"{name}={call.settings[name]}"


def another_rate(draw: random.Random, call: OpCall) -> str | None:
    if call.op != "cep_step":
        return None
    rates = list(call.settings["lr"])
    if draw.random() < 0.3:
        rates = draw.choice((rates[:-1], [*rates, 0.1]))
    else:
        rates[draw.randrange(len(rates))] = draw.choice((-1e-9, -1.0, NAN, INF, -INF))
    call.settings["lr"] = rates
    return f"lr={rates}"


def another_label(draw: random.Random, call: OpCall) -> str | None:
    target = call.positional["target"]
    if target is None:
        return None
    labels = torch.zeros(len(target), dtype=torch.int64)
    labels[draw.randrange(len(labels))] = draw.choice((-1, target.shape[1], 2**31, 2**62, -(2**63)))
    call.positional["target"] = labels
    return f"target={labels.tolist()}"


def another_geometry(draw: random.Random, call: OpCall) -> str | None:
    if not call.settings.get("pools"):
        name, value = draw.choice((("pools", "i" * 12), ("strides", [1, 1]), ("paddings", [0, 0]), ("windows", [2])))
        call.settings[name] = value
        return f"{name}={value} of dense layers"
    if draw.random() < 0.2:
        call.settings["pools"] = draw.choice(("x", "M", "\0")) + call.settings["pools"][1:]
        return f"pools={call.settings['pools']!r}"
    name = draw.choice(("strides", "paddings", "windows"))
    numbers = list(call.settings[name])
    if draw.random() < 0.3:
        numbers = draw.choice((numbers[:-1], [*numbers, 1], []))
    else:
        least = 0 if name == "paddings" else 1
        wrong = (least - 1, -7, MOST_PLACES + 1, 2**31, 2**62, 2**63 - 1, -(2**63))
        numbers[draw.randrange(len(numbers))] = draw.choice(wrong)
    call.settings[name] = numbers
    return f"{name}={numbers}"


def together_wrong(draw: random.Random, call: OpCall) -> str | None:
    """Settings of which each is right."""
    pairs: list[dict[str, Any]] = []
    if call.op != "relax" and call.settings["feedback"] == "tied":
        pairs.append({"shared_update": True})
    if call.positional["target"] is not None and call.settings["readout"]:
        pairs += [{"loss": "mse"}, {"nudge_at": "state"}]
    elif call.positional["target"] is not None:
        pairs.append({"loss": "cross_entropy", "output_activation": "tanh"})
    has_inner_weights = len(call.positional["weights"]) - call.settings["readout"] > 1
    if has_inner_weights:
        pairs.append({"feedback": "free" if call.settings["feedback"] == "tied" else "tied"})
    pairs.append({"precision": "tf32"})  # of CUDA's
    chosen = draw.choice(pairs)
    call.settings |= chosen
    return str(chosen)


def memory_that_is_shared(draw: random.Random, call: OpCall) -> str | None:
    """Numbers that continual EP writes, in one place of memory."""
    if call.op != "cep_step":
        return None
    written = [(n, t) for n, t in call.tensors() if n.partition("[")[0] not in ("x", "target") and t.numel() > 1]
    if not written:
        return None
    name, tensor = draw.choice(written)
    twins = [(n, t) for n, t in written if n != name and t.shape == tensor.shape]
    if twins and draw.random() < 0.5:
        other, twin = draw.choice(twins)
        call.replaced(name, twin)
        return f"{name} is {other}"
    call.replaced(name, tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape))
    return f"{name} expanded"


def memory_that_overlaps_itself(draw: random.Random, call: OpCall) -> str | None:
    """Strides by which several numbers that continual EP writes lie in one place, none of them 0."""
    if call.op != "cep_step":
        return None
    written = [
        (n, t)
        for n, t in call.tensors()
        if n.partition("[")[0] not in ("x", "target") and sum(size > 1 for size in t.shape) > 1
    ]
    if not written:
        return None
    name, tensor = draw.choice(written)
    call.replaced(name, torch.rand(tensor.numel()).to(tensor).as_strided(tensor.shape, [1] * tensor.ndim))
    return f"{name} with strides 1"


def gradients_wanted(draw: random.Random, call: OpCall) -> str | None:
    if call.op != "cep_step":
        return None
    written = [(n, t) for n, t in call.tensors() if n.partition("[")[0] not in ("x", "target") and t.numel() > 0]
    name, tensor = draw.choice(written)
    call.replaced(name, tensor.clone().requires_grad_())
    return f"{name} requires grad"


MISTAKES: tuple[Mistake, ...] = (
    another_shape,
    another_dtype,
    another_device,
    another_count,
    another_word,
    another_number,
    another_rate,
    another_label,
    another_geometry,
    together_wrong,
    memory_that_is_shared,
    memory_that_overlaps_itself,
    gradients_wanted,
)
