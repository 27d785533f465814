"""Which backend runs, what is said about it, and that through the public API the backends agree."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_calls import BATCH, CALLS, SIZES, batch, cep_rule, ep_rule, flat, mlp
from emulated_device import EmulatedDevice
from known_devices import DEVICES
from problems import relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ceprop_cuda as cep
from ceprop_cuda import backends, ops
from ceprop_cuda.bench.contenders import AUTOGRAD_OF_PHI
from ceprop_cuda.bench.same_algebra import SameAlgebra
from ceprop_cuda.bench.stepwise import Stepwise
from ceprop_cuda.spec import reference


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the modules whose functions ran, in order. The reference's call each other."""
    names: list[str] = []

    def spied(module: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def spy(*args: Any, **kwargs: Any) -> Any:
            names.append(module.__name__.rpartition(".")[2])
            return function(*args, **kwargs)

        return spy

    for module in (ops, reference):
        for name in ("relax", "ep_step", "cep_step"):
            monkeypatch.setattr(module, name, spied(module, getattr(module, name)))
    monkeypatch.setattr(reference, "bptt", spied(reference, reference.bptt))
    return names


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """What the log "ceprop_cuda" says in this test, as if nothing had been said before."""
    backends.say_once.cache_clear()
    caplog.set_level(logging.INFO, "ceprop_cuda")
    yield lambda: [(level, message) for name, level, message in caplog.record_tuples if name == "ceprop_cuda"]
    backends.say_once.cache_clear()


# --- What computes


def test_what_computes_is_an_engine(tmp_path: Path) -> None:
    emulated = EmulatedDevice(tmp_path / "program", tmp_path)
    for engine in (backends.REFERENCE, backends.Kernels(), emulated, Stepwise(), SameAlgebra(), AUTOGRAD_OF_PHI):
        assert isinstance(engine, backends.Engine)


def test_engines_say_what_they_cannot_run() -> None:
    joined = [("input", "a", 11, 5), ("input", "b", 11, 3), ("a", "b", 5, 3)]
    connections = [(below, above, torch.nn.Linear(*sizes)) for below, above, *sizes in joined]
    graph = cep.graph(connections, input_shape=11, output="b").double()
    message = "engine='fused' is for the fused kernels of a CPU, and they take chains"
    with pytest.raises(backends.FusedUnavailable, match=message):
        graph.relax(batch()[0], 2, engine="fused", backend="fused")
    conv = cep.convnet((1, 6, 6), channels=(2,), kernels=3, pools="m", fc=(3,), feedback="free").double()
    rule = cep.EP(conv, 4, 2, 0.2, gate="unit", engine="fused", backend="fused")
    with pytest.raises(backends.FusedUnavailable, match="only those for dense layers have a gate"):
        rule.backward(torch.rand(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1]))
    with pytest.raises(
        backends.FusedUnavailable, match="engine='teams' is for teams of a GPU's blocks, and this tensor"
    ):
        ep_rule(mlp(), engine="teams", backend="fused").backward(*batch())
    with pytest.raises(ValueError, match="engine must be one of 'auto', 'fused', 'teams', 'graph', got 'grid'"):
        ep_rule(mlp(), engine="grid")


def test_convolutions_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked without a GPU, of tensors without memory: clusters take the phases in which weights rest, or PyTorch's
    operators take all."""
    of_device: dict[str, int] = {}
    monkeypatch.setattr(ops._C, "cuda_device", lambda index: of_device, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    circuit = cep.convnet((1, 8, 8), channels=(4, 6), kernels=3, pools="im", fc=(5,)).circuit()
    small = cep.convnet((1, 8, 8), channels=(4, 6), kernels=2, pools="im", fc=(5,)).circuit()
    with FakeTensorMode():
        x = torch.empty(2, 1, 8, 8, device="cuda:0")
        of_device.update(DEVICES["H100"])
        for engine in ("auto", "teams"):
            assert ops.obstacle(circuit, x, engine=engine) is None
            plan = ops.launch_plan(circuit, x, engine=engine)
            assert (plan["engine"], plan["team"], plan["rounds"]) == ("teams", "cluster", 1)
        for engine in ("auto", "graph"):
            for precision in ("exact", "tf32"):
                assert ops.obstacle(small, x, precision, engine=engine) is None
                assert ops.launch_plan(small, x, precision=precision, engine=engine) == {"engine": "graph"}
            reason = "precision='tf32' takes float32 on a GPU of compute capability 8.0 or more"
            assert ops.obstacle(circuit, x.double(), "tf32", engine=engine) == reason
            with pytest.raises(ValueError, match=reason):
                ops.launch_plan(circuit, x.double(), precision="tf32", engine=engine)
        assert ops.launch_plan(circuit, x, engine="graph") == {"engine": "graph"}
        assert "this tensor is on a GPU" in str(ops.obstacle(circuit, x, engine="fused"))
        assert "kernels of 3 x 3 or 5 x 5" in str(ops.obstacle(small, x, engine="teams"))
        with pytest.raises(ValueError, match="kernels of 3 x 3 or 5 x 5"):
            ops.launch_plan(small, x, engine="teams")
        of_device.update(DEVICES["A100"])
        ops._no_team.cache_clear()
        assert "no clusters" in str(ops.obstacle(circuit, x, engine="teams"))
        assert ops.launch_plan(circuit, x) == {"engine": "graph"}
    ops._no_team.cache_clear()


@pytest.mark.parametrize("call", ["EP", "CEP"])
def test_engines_compute_the_same(call: str) -> None:
    (x, y), results = batch(), []
    start = mlp()
    for engine in ("fused", "graph"):
        net = copy.deepcopy(start)
        if call == "EP":
            ep_rule(net, engine=engine, backend="fused").backward(x, y)
            results.append([p.grad for p in net.parameters()])
        else:
            cep_rule(net, engine=engine, backend="fused").step(x, y)
            results.append([p.detach() for p in net.parameters()])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# --- Which backend runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", CALLS)
def test_auto_runs_the_fused_kernels_where_they_can(
    call: str, dtype: torch.dtype, ran: list[str], said: Callable[[], list[tuple[int, str]]]
) -> None:
    net, (x, y) = mlp(dtype), batch(dtype)
    for _ in range(3):
        CALLS[call](net, x, y, "auto")
    # BPTT's unrolled steps are the reference's by definition, those before them are not.
    assert ran == (["ops", "reference"] * 3 if call == "BPTT" else ["ops"] * 3)
    assert said() == [(logging.INFO, "running the compiled kernels on cpu")]


def test_forward_runs_the_fused_kernels(ran: list[str]) -> None:
    net, (x, _) = mlp(), batch()
    net(x)
    assert ran == ["ops"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_falls_back_to_the_reference_and_warns_once(
    dtype: torch.dtype, ran: list[str], said: Callable[[], list[tuple[int, str]]]
) -> None:
    net, (x, y) = mlp(dtype), batch(dtype)
    for _ in range(2):
        for call in CALLS.values():
            call(net, x, y, "auto")
        net(x)
    assert set(ran) == {"reference"}
    ((level, message),) = said()
    assert level == logging.WARNING
    assert message.startswith("backend='auto' runs the slow reference: ")
    assert str(dtype) in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("call", CALLS)
def test_fused_refuses_what_it_cannot_run_and_says_why(
    call: str, dtype: torch.dtype, ran: list[str], said: Callable[[], list[tuple[int, str]]]
) -> None:
    net, (x, y) = mlp(dtype), batch(dtype)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(backends.FusedUnavailable, match=rf"backend='fused' cannot run this: .*{dtype}; use backend="):
        CALLS[call](net, x, y, "fused")
    assert ran == []
    assert said() == []
    assert all(map(torch.equal, net.parameters(), before))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("call", CALLS)
def test_reference_runs_the_reference_and_says_nothing(
    call: str, ran: list[str], said: Callable[[], list[tuple[int, str]]]
) -> None:
    net, (x, y) = mlp(), batch()
    CALLS[call](net, x, y, "reference")
    assert set(ran) == {"reference"}
    assert said() == []


# --- Precision


def test_tensor_cores_are_a_gpus(said: Callable[[], list[tuple[int, str]]]) -> None:
    net, (x, y) = mlp(torch.float32), batch(torch.float32)
    message = "precision='tf32' is CUDA's, got a tensor on the CPU"
    calls: list[Callable[[str], object]] = [
        lambda backend: net.relax(x, 2, backend=backend, precision="tf32"),
        lambda backend: ep_rule(net, backend=backend, precision="tf32").backward(x, y),
        lambda backend: ep_rule(net, backend=backend, precision="tf32").predict(x, y),
        lambda backend: cep_rule(net, backend=backend, precision="tf32").step(x, y),
    ]
    for call in calls:
        with pytest.raises(backends.FusedUnavailable, match=message):
            call("fused")
    assert said() == []
    for call in calls:
        call("auto")
    assert said() == [(logging.WARNING, f"backend='auto' runs the slow reference: {message}")]


def test_an_unknown_precision_is_refused() -> None:
    net, (x, _) = mlp(), batch()
    wanted = "precision must be one of 'exact', 'tf32', got 'fp8'"
    for call in (
        lambda: net.relax(x, 2, precision="fp8"),
        lambda: ep_rule(net, precision="fp8"),
        lambda: cep_rule(net, precision="fp8"),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()
    with pytest.raises(ValueError, match="precision must be 'exact' on the CPU"):
        ops.relax(net.circuit(), x, 2, precision="tf32")


# --- Without autograd


FREE_CALLS = [call for call in CALLS if call not in ("EP", "CEP", "BPTT")]  # of which inference_mode takes no more


@pytest.mark.parametrize(
    ("call", "mode"),
    [
        *((call, torch.no_grad) for call in (*FREE_CALLS, "EP", "CEP")),
        *((call, torch.inference_mode) for call in FREE_CALLS),
    ],
)
def test_fused_works_without_autograd(call: str, mode: Callable[[], Any]) -> None:
    plain, (x, y) = mlp(), batch()
    net = copy.deepcopy(plain)
    expected = CALLS[call](plain, x, y, "fused")
    with mode():
        result = CALLS[call](net, x, y, "fused")
        output = net(x)
    assert len(flat(result)) >= 3
    assert all(map(torch.equal, flat(result), flat(expected)))
    assert torch.equal(output, plain(x))
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None) == (call != "EP")
        assert p.grad is None or torch.equal(p.grad, q.grad)


# --- Agreement


def assert_backends_agree(
    net: cep.Network, make_rule: Callable[..., cep.EP | cep.CEP], y: Tensor, steps: int = 1, **settings: Any
) -> list[cep.Network]:
    """Run ``steps`` batches with each backend on a copy of ``net``; what they report and learn is the same.

    Returns the copies.
    """
    nets, xs = [], [batch()[0] for _ in range(steps)]
    reports: list[list[Tensor]] = []
    for backend in ("fused", "reference"):
        nets.append(copy.deepcopy(net))
        rule = make_rule(nets[-1], backend=backend, **settings)
        torch.manual_seed(5)
        learn = rule.backward if isinstance(rule, cep.EP) else rule.step
        reports.append([tensor for x in xs for tensor in flat(learn(x, y))])
    for a, b in zip(*reports, strict=True):
        assert relative_error(a, b) < 1e-10
    for before, fused, ref in zip(net.parameters(), *(copied.parameters() for copied in nets), strict=True):
        assert (fused.grad is None) == (ref.grad is None)
        learned = [p.detach() - before.detach() if p.grad is None else p.grad for p in (fused, ref)]
        assert relative_error(*learned) < 1e-10
        if before.requires_grad:
            assert learned[0].abs().max() > 1e-6
    return nets


RULES = [ep_rule, cep_rule]


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("rule", RULES)
def test_they_agree_without_biases(rule: Callable[..., Any], feedback: str) -> None:
    assert_backends_agree(mlp(bias=False, feedback=feedback), rule, batch()[1])


def test_they_agree_on_frozen_parameters() -> None:
    net = mlp(feedback="free")
    frozen = ["model.2.weight", "model.1.bias", "free_feedback.1"]
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    for copied in assert_backends_agree(net, ep_rule, batch()[1]):
        assert {name for name, p in copied.named_parameters() if p.grad is None} == set(frozen)


@pytest.mark.parametrize("rule", RULES)
def test_they_draw_the_same_random_signs(rule: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    assert len({torch.rand(()).item() < 0.5 for _ in range(8)}) == 2  # of the signs that follow, both occur
    assert_backends_agree(mlp(), rule, batch()[1], steps=8, nudging="random_sign")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_they_agree_on_float_targets(rule: Callable[..., Any], dtype: torch.dtype) -> None:
    assert_backends_agree(mlp(), rule, torch.rand(BATCH, SIZES[-1], dtype=dtype))


def test_class_indices_are_one_hot_float_targets_to_the_kernels() -> None:
    net, (x, y) = mlp(), batch()
    by_index, by_float = copy.deepcopy(net), copy.deepcopy(net)
    cep_rule(by_index, backend="fused").step(x, y)
    cep_rule(by_float, backend="fused").step(x, F.one_hot(y, SIZES[-1]).double())
    assert all(map(torch.equal, by_index.parameters(), by_float.parameters()))


@pytest.mark.parametrize("feedback", ["tied", "free"])
@pytest.mark.parametrize("rule", RULES)
def test_they_agree_on_a_softmax_readout_nudged_both_ways(rule: Callable[..., Any], feedback: str) -> None:
    assert_backends_agree(mlp(readout="softmax", feedback=feedback), rule, batch()[1], nudging="symmetric")


@pytest.mark.parametrize("nudging", ["positive", "symmetric"])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (ep_rule, {"shared_update": True}),
        (ep_rule, {"accumulate": True}),
        (ep_rule, {"shared_update": True, "accumulate": True}),
        (cep_rule, {"shared_update": True}),
    ],
)
def test_they_agree_on_free_feedback(rule: Callable[..., Any], settings: dict[str, Any], nudging: str) -> None:
    assert_backends_agree(mlp(feedback="free"), rule, batch()[1], nudging=nudging, **settings)


class Seen(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("rule", "op"), [("ep", "ep_step"), ("cep", "cep_step")])
def test_a_step_asks_torch_for_memory_alone(rule: str, op: str) -> None:
    """On a GPU every other operator is a kernel, and more time of the host than the step's own."""
    net, (x, y) = mlp(), batch()
    learn = ep_rule(net, backend="fused").backward if rule == "ep" else cep_rule(net, backend="fused").step
    with Seen() as seen:
        out = learn(x, y)
    assert seen.names.count(f"ceprop_cuda.{op}.default") == 1
    assert {name for name in seen.names if "ceprop_cuda" not in name} <= {"aten.empty.memory_format"}
    assert torch.equal(out.target, F.one_hot(y, SIZES[-1]).to(x.dtype))
