"""What the ops promise besides their values: opcheck, torch.compile, strides, threads, refusals."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_arguments import OPS, SIZES, every_op, keywords, positional, torch_ops
from problems import random_problem
from torch import Tensor
from variants import copy_of

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.spec.dynamics import Circuit, Nudge


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(torch_ops, op).default, positional(op, dtype), keywords(op))


@pytest.mark.parametrize(
    ("op", "settings"),
    [
        *((op, settings) for op in OPS for settings in ({"tolerance": 1e-3}, {"schedule": "asynchronous"})),
        *((op, {"symmetric": False}) for op in OPS[1:]),
        *(("cep_step", {"update": update}) for update in ("literal", "low_rank")),
        *((op, {"gate": "unit", "shared_update": False}) for op in OPS[1:]),
    ],
)
def test_opcheck_of_other_settings(op: str, settings: dict[str, Any]) -> None:
    arguments = positional(op, symmetric=settings.get("symmetric", True))
    torch.library.opcheck(getattr(torch_ops, op).default, arguments, keywords(op) | settings)


@pytest.mark.parametrize("op", OPS)
def test_schema(op: str) -> None:
    schema = getattr(torch_ops, op).default._schema
    of_structure = {"strides", "paddings", "pools", "windows", "joined", "turns"}
    assert {argument.name for argument in schema.arguments if argument.kwarg_only} == {
        *keywords(op),
        "precision",
        "engine",
        *of_structure,
        *([] if op == "relax" else ["gate"]),
    }
    assert {argument.name: str(argument.type) for argument in schema.arguments}["tolerance"] == "Optional[float]"
    assert (schema.returns[-1].name, str(schema.returns[-1].type)) == ("steps_used", "Tensor")


@pytest.mark.parametrize(
    ("op", "symmetric", "phases"),
    [("relax", True, 1), ("ep_step", False, 2), ("ep_step", True, 3), ("cep_step", False, 2), ("cep_step", True, 4)],
)
def test_steps_used(op: str, symmetric: bool, phases: int) -> None:
    changes: dict[str, Any] = {"steps": 7} if op == "relax" else {"free_steps": 7, "nudged_steps": 6}
    changes |= {} if op == "relax" else {"symmetric": symmetric}
    for tolerance, expected in ((None, [7] + [6] * (phases - 1)), (1e9, [4] * phases)):
        settings = keywords(op) | changes | {"tolerance": tolerance}
        result = getattr(torch_ops, op)(*positional(op, symmetric=symmetric), **settings)
        steps = result if op == "cep_step" else result[-1]
        assert (steps.dtype, steps.device.type) == (torch.int64, "cpu")
        assert steps.tolist() == expected


@pytest.mark.parametrize("op", ["relax", "ep_step"])
def test_opcheck_with_gradients_wanted(op: str) -> None:
    arguments = positional(op)
    arguments[1] = [w.requires_grad_() for w in arguments[1]]
    # test_aot_dispatch_dynamic runs the backward, which these ops refuse; compiling is tested below.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch_ops, op).default, arguments, keywords(op), test_utils=tests)


def test_compiles_without_graph_breaks() -> None:
    circuit, x, target = random_problem(SIZES, 3, feedback="free", dtype=torch.float32)
    nudge = Nudge(target, 0.3)
    eager, compiled = copy_of(circuit), copy_of(circuit)
    expected = every_op(x, eager, nudge)
    got = torch.compile(every_op, fullgraph=True)(x, compiled, nudge)
    pairs = zip(expected + eager.parameters(), got + compiled.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("op", ["relax", "ep_step"])
def test_compiles_with_parameters_and_refuses_their_gradient(op: str) -> None:
    arguments = positional(op)
    arguments[1] = [torch.nn.Parameter(w) for w in arguments[1]]

    def call(*tensors: Any) -> Tensor:
        return getattr(torch_ops, op)(*tensors, **keywords(op))[0][0]

    result = torch.compile(call, fullgraph=True)(*arguments)
    assert torch.equal(result, call(*arguments))
    with pytest.raises(RuntimeError, match="not differentiable"):
        result.sum().backward()


@pytest.mark.filterwarnings("error:Dynamo")  # of what it cannot trace as it is
def test_networks_compile() -> None:
    net = cep.mlp(*SIZES, free_steps=3)
    x = torch.rand(4, 6)
    assert torch.equal(torch.compile(net, fullgraph=True)(x), net(x))


def test_any_strides() -> None:
    circuit, x, target = random_problem(SIZES, 4, feedback="free")
    dense = copy_of(circuit)

    def strided(t: Tensor) -> Tensor:
        wide = torch.full([2 * n for n in t.shape], float("nan"), dtype=t.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
        return view.copy_(t)

    views = Circuit(
        [strided(w) if w.shape[0] != 9 else w.T.contiguous().T for w in circuit.weights],
        [strided(b) for b in circuit.biases],
        [strided(v) for v in circuit.free_feedback],
        circuit.dynamics,
        circuit.structure,
    )
    expected = every_op(x, dense, Nudge(target, 0.3))
    got = every_op(strided(x), views, Nudge(strided(target), 0.3))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), views.parameters(), strict=True))


def test_weights_that_are_rows_of_one_tensor() -> None:
    circuit, x, target = random_problem(SIZES, 4)
    flat = torch.cat([w.flatten() for w in circuit.weights])
    first, second = flat.split([w.numel() for w in circuit.weights])
    views = Circuit(
        [first.view(9, 6), second.view(5, 9)], copy_of(circuit).biases, None, circuit.dynamics, circuit.structure
    )
    nudge = Nudge(target, 0.3)
    pairs = zip(every_op(x, circuit, nudge), every_op(x, views, nudge), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(flat, torch.cat([w.flatten() for w in circuit.weights]))


def test_class_indices_and_one_hot_targets_agree() -> None:
    arguments, settings = positional("ep_step"), keywords("ep_step")
    labels = torch_ops.ep_step(*arguments, **settings)
    arguments[4] = torch.nn.functional.one_hot(arguments[4], 5).float()
    one_hot = torch_ops.ep_step(*arguments, **settings)
    for a, b in zip(labels, one_hot, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_gradients_are_refused_not_lost() -> None:
    arguments = positional("relax")
    arguments[1] = [w.requires_grad_() for w in arguments[1]]
    states, _ = torch_ops.relax(*arguments, **keywords("relax"))
    with pytest.raises(RuntimeError, match="not differentiable"):
        states[0].sum().backward()


def test_in_place_change_is_seen_by_autograd() -> None:
    arguments = positional("cep_step")
    changed = [t for position in (1, 2, 3, 5, 6) for t in arguments[position]]
    before = [t._version for t in changed]
    torch_ops.cep_step(*arguments, **keywords("cep_step"))
    assert [t._version for t in changed] == [version + 1 for version in before]
    values = [w.clone() for w in arguments[1]]
    arguments[1] = [w.requires_grad_() for w in arguments[1]]
    with pytest.raises(RuntimeError, match=r"weights\[0\] requires grad"):
        torch_ops.cep_step(*arguments, **keywords("cep_step"))
    assert all(torch.equal(a, b) for a, b in zip(values, arguments[1], strict=True))


def test_gil_is_released() -> None:
    circuit, x, _ = random_problem((64, 512, 512), 64)
    beats: list[float] = []
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            beats.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=beat)
    other.start()
    start = time.perf_counter()
    ops.relax(circuit, x, 400)
    end = time.perf_counter()
    done.set()
    other.join()
    inside = [t for t in beats if start < t < end]
    assert len(inside) >= 5, f"{len(inside)} beats in {end - start:.3f} s"


def test_denormals_are_flushed_inside_and_kept_outside() -> None:
    circuit, x, _ = random_problem((4, 3), 2, activation="linear", bias=False, dtype=torch.float32)
    tiny = torch.full((1,), 1e-39)
    ops.relax(circuit, x, 3)
    assert (tiny * 1).item() > 0
    assert ops.relax(circuit, x * 1e-39, 1).states[0].abs().max().item() == 0


def refusal(op: str, change: Callable[[list, dict], None], error: type[Exception], message: str) -> None:
    """The op refuses the changed arguments with this message, and leaves every tensor as it was."""
    arguments, settings = positional(op), keywords(op)
    change(arguments, settings)
    lists = [a if isinstance(a, list) else [a] for a in arguments]
    flat = [t for tensors in lists for t in tensors if isinstance(t, Tensor) and not t.is_meta]
    before = [t.clone() for t in flat]
    with pytest.raises(error, match=re.escape(message)):
        getattr(torch_ops, op)(*arguments, **settings)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(flat, before, strict=True))


def put(position: int, value: Any, index: int | None = None) -> Callable[[list, dict], None]:
    def change(arguments: list, _settings: dict) -> None:
        if index is None:
            arguments[position] = value
        else:
            arguments[position] = [*arguments[position]]
            arguments[position][index] = value

    return change


def setting(**values: Any) -> Callable[[list, dict], None]:
    return lambda _arguments, settings: settings.update(values)


NAN = float("nan")
SHARED = torch.rand(3, 9)
BAD_FOR_ALL = [
    (put(0, torch.rand(3, 7)), ValueError, "weights[0] must be (9, 7), got (9, 6)"),
    (put(0, torch.rand(3, 2, 3)), ValueError, "x must be (B, n_in) with B, n_in >= 1, got (3, 2, 3)"),
    (put(0, torch.rand(0, 6)), ValueError, "x must be (B, n_in) with B, n_in >= 1, got (0, 6)"),
    (put(0, torch.rand(3, 6).half()), TypeError, "x must be float32 or float64, got Half"),
    (put(0, torch.rand(3, 6).double()), TypeError, "weights[0] must be Double like x, got Float"),
    (put(1, torch.rand(9, 5), 1), ValueError, "weights[1] must be (9, 9), got (9, 5)"),
    (put(1, torch.rand(5, 9, dtype=torch.float64), 1), TypeError, "weights[1] must be Float like x, got Double"),
    (put(1, torch.rand(5, 9, device="meta"), 1), ValueError, "weights[1] must be on cpu like x, got meta"),
    (put(1, []), ValueError, "weights must hold at least 1 tensors, got 0"),
    (put(2, torch.rand(4), 1), ValueError, "biases[1] must be (5,), got (4,)"),
    (put(2, []), ValueError, "biases must hold 2 tensors like the weights, got 0"),
    (put(3, torch.rand(9, 5), 0), ValueError, "feedback_weights[0] must be (5, 9), got (9, 5)"),
    (put(3, []), ValueError, "feedback_weights must hold 1 tensors with free feedback, got 0"),
    (setting(feedback="tied"), ValueError, "feedback_weights must hold 0 tensors with tied feedback, got 1"),
    (setting(feedback="loose"), ValueError, "feedback must be one of 'tied', 'free', got 'loose'"),
    (setting(activation="swish"), ValueError, "activation must be one of 'sigmoid', 'hard_sigmoid'"),
    (setting(output_activation="swish"), ValueError, "output_activation must be one of 'sigmoid'"),
    (setting(dynamics="fast"), ValueError, "dynamics must be one of 'prototypical', 'energy', got 'fast'"),
    (setting(dt=NAN), ValueError, "dt must be a finite number > 0, got nan"),
    (setting(dt=0.0), ValueError, "dt must be a finite number > 0, got 0"),
    (setting(schedule="random"), ValueError, "schedule must be one of 'synchronous', 'asynchronous', got 'random'"),
    (setting(tolerance=-1e-3), ValueError, "tolerance must be a finite number >= 0, or None, got -0.001"),
    (setting(tolerance=NAN), ValueError, "tolerance must be a finite number >= 0, or None, got nan"),
    (setting(tolerance=float("inf")), ValueError, "tolerance must be a finite number >= 0, or None, got inf"),
    (setting(beta=0.0), ValueError, "beta must be a finite number other than 0 in a nudged phase, got 0"),
    (setting(beta=NAN), ValueError, "beta must be a finite number other than 0 in a nudged phase, got nan"),
    (setting(nudge_at="soma"), ValueError, "nudge_at must be one of 'state', 'drive', got 'soma'"),
    (setting(loss="hinge"), ValueError, "loss must be one of 'mse', 'cross_entropy', got 'hinge'"),
    (setting(loss="cross_entropy"), ValueError, "needs output_activation = 'linear' or a readout, got"),
]
BAD_FOR_TARGET = [
    (torch.tensor([0, 5, 1]), ValueError, "class indices must lie in 0 .. 4, got 0 .. 5"),
    (torch.tensor([0, 1, -1]), ValueError, "class indices must lie in 0 .. 4, got -1 .. 1"),
    (torch.tensor([0, 1]), ValueError, "target must be (3,) class indices or (3, 5) floats, got (2,)"),
    (torch.tensor([0, 1, 2], dtype=torch.int32), TypeError, "class indices in target must be int64, got Int"),
    (torch.rand(3, 4), ValueError, "target must be (3, 5), got (3, 4)"),
    (torch.rand(3, 5).double(), TypeError, "target must be Float like x, got Double"),
    (torch.tensor([0, 1, 2], device="meta"), ValueError, "target must be on cpu like x, got meta"),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("change", "error", "message"), BAD_FOR_ALL, ids=[m for _, _, m in BAD_FOR_ALL])
def test_refused_by_all(op: str, change: Callable, error: type[Exception], message: str) -> None:
    refusal(op, change, error, message)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("target", "error", "message"), BAD_FOR_TARGET, ids=[m for _, _, m in BAD_FOR_TARGET])
def test_refused_targets(op: str, target: Tensor, error: type[Exception], message: str) -> None:
    refusal(op, put(5 if op == "relax" else 4, target), error, message)


@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        ("relax", setting(steps=-1), ValueError, "steps must be an int >= 0, got -1"),
        ("relax", setting(steps=2**31), ValueError, "steps must be an int <= 2147483647, got 2147483648"),
        ("relax", put(4, [torch.rand(3, 9)]), ValueError, "states must hold 2 tensors, one per layer, or none, got 1"),
        ("relax", put(4, torch.rand(2, 9), 0), ValueError, "states[0] must be (3, 9), got (2, 9)"),
        ("ep_step", setting(free_steps=-1), ValueError, "free_steps must be an int >= 0, got -1"),
        ("ep_step", setting(nudged_steps=0), ValueError, "nudged_steps must be an int >= 1, got 0"),
        ("cep_step", setting(nudged_steps=0), ValueError, "nudged_steps must be an int >= 1, got 0"),
        ("cep_step", setting(lr=[0.1]), ValueError, "lr must hold 2 rates, one per connection, got 1"),
        ("cep_step", setting(lr=[0.1, NAN]), ValueError, "lr[1] must be a finite number >= 0, got nan"),
        ("cep_step", setting(lr=[-0.1, 0.1]), ValueError, "lr[0] must be a finite number >= 0, got -0.1"),
        ("cep_step", setting(weight_decay=-0.1), ValueError, "weight_decay must be a finite number >= 0, got -0.1"),
        ("cep_step", setting(weight_decay=NAN), ValueError, "weight_decay must be a finite number >= 0, got nan"),
        ("cep_step", setting(update="fast"), ValueError, "update must be one of 'auto', 'literal', 'low_rank', got 'f"),
        ("cep_step", put(5, []), ValueError, "free_states must hold 2 tensors, one per layer, got 0"),
        ("cep_step", put(5, torch.rand(3, 9, device="meta"), 0), ValueError, "free_states[0] must be on cpu like x"),
        ("cep_step", put(2, torch.rand(1).expand(5), 1), ValueError, "biases[1] is changed in place and must not be"),
        ("cep_step", put(6, [SHARED, torch.rand(3, 5)] * 2), ValueError, "must not share memory"),
        ("cep_step", put(6, torch.rand(3, 8), 2), ValueError, "nudged_states[2] must be (3, 9), got (3, 8)"),
    ],
)
def test_refused(op: str, change: Callable, error: type[Exception], message: str) -> None:
    refusal(op, change, error, message)


@pytest.mark.parametrize("op", ["ep_step", "cep_step"])
def test_shared_update_needs_free_feedback(op: str) -> None:
    arguments, settings = positional(op), keywords(op)
    arguments[3] = []
    settings.update(feedback="tied", shared_update=True)
    with pytest.raises(ValueError, match="shared_update must be False with tied feedback"):
        getattr(torch_ops, op)(*arguments, **settings)
