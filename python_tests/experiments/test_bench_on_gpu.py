"""`ceprop bench` on a GPU: everything but the GPU, for whose events and graphs the CPU stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_steps
import pytest
import torch
from bench_cases import SETTINGS, small, small_convolutional
from known_devices import DEVICES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ceprop_cuda import environment, ops
from ceprop_cuda.backends import FusedUnavailable
from ceprop_cuda.bench import breakdown, command, measure, suite
from ceprop_cuda.bench import contenders as of_contenders
from ceprop_cuda.bench.cases import Case
from ceprop_cuda.bench.contenders import ENGINES, contenders
from ceprop_cuda.bench.report import markdown_table
from ceprop_cuda.cli import main
from ceprop_cuda.output.tables import read_rows


class EventOfCpu:
    """As a CUDA event: marks a moment, which is known once it was waited for."""

    now = 0.0  # ms
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        EventOfCpu.now += 1
        self.at = EventOfCpu.now

    def synchronize(self) -> None:
        EventOfCpu.waits += 1

    def elapsed_time(self, end: EventOfCpu) -> float:
        assert EventOfCpu.waits > 0
        return end.at - self.at


class GraphOfCpu(TorchDispatchMode):
    """As a CUDA graph: what is captured is not done but kept, and every replay does it on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.undone: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op._schema.is_mutable:
            self.undone += [(t, t.clone()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = op(*args, **kwargs)
        self.operations.append((op, args, kwargs, result))
        return result

    def replay(self) -> None:
        for op, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(op(*args, **kwargs)), strict=True):
                old.copy_(new)


@contextmanager
def captured(graph: GraphOfCpu) -> Iterator[None]:
    with graph:
        yield
    for tensor, before in reversed(graph.undone):
        tensor.copy_(before)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark asks of a GPU, played by the CPU."""
    on_cpu = Case.problem
    monkeypatch.setattr(Case, "problem", lambda case, dtype: on_cpu(replace(case, device="cpu"), dtype))
    monkeypatch.setattr(suite, "matrix_product", lambda device: measure.matrix_product({"cuda": "cpu"}[device]))
    monkeypatch.setattr(ops._C, "cuda_device", lambda index: DEVICES["H100"], raising=False)
    monkeypatch.setattr(ops, "_team_obstacle", lambda circuit, *_: "" if circuit.structure.convolutions else None)
    stand_ins = {"Event": EventOfCpu, "CUDAGraph": GraphOfCpu, "graph": captured, "is_available": lambda: True}
    for name, stand_in in (stand_ins | {"get_device_name": lambda: "a GPU"}).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_the_gpus_clock_waits_once(gpu: None) -> None:
    waits, calls = EventOfCpu.waits, []
    assert measure.CLOCKS["cuda"](lambda: calls.append(1), 5) == pytest.approx([1e-3] * 5)
    assert (len(calls), EventOfCpu.waits - waits) == (5, 1)


@pytest.mark.parametrize(("name", "relaxes_only"), [*((name, False) for name in SETTINGS), ("ep-2h", True)])
def test_the_graph_does_what_it_captured(name: str, relaxes_only: bool, gpu: None) -> None:
    case = small(name, relaxes_only=relaxes_only, device="cuda")
    net, x, y = case.problem(torch.float64)
    expected_net, *_ = case.problem(torch.float64)
    step, expected_step = (contenders("cuda")[way](case, n) for way, n in (("graph", net), ("eager", expected_net)))
    for _ in range(3):
        for state, expected in zip(step(x, y), expected_step(x, y), strict=True):
            assert torch.allclose(state, expected, rtol=1e-12, atol=1e-12)
        for p, q in zip(net.parameters(), expected_net.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-12, atol=1e-12)


def test_an_engine_is_that_of_its_own_rule_only(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(of_contenders, "_by_rule", lambda backend, case, net, engine="auto": seen.append(engine))
    assert [*contenders("cuda", convolutional=True)] == ["fused", "eager", "compile", "autograd", "graph", "library"]
    assert [*contenders("cuda")][-1] == "library"
    case = replace(small_convolutional(False), device="cuda")
    net, *_ = case.problem(torch.float32)
    for engine in (*ENGINES, ""):
        of_contenders.by_engine(engine, case, net)
    assert seen == ["teams", "graph", "auto"]


def test_a_rule_runs_by_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("relax", "ep_step"):
        op = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, op=op, engine, **settings: (seen.append(engine), op(*args, **settings))[1]
        )
    net, x, y = small_convolutional(False).problem(torch.float32)
    rule = small_convolutional(False).preset.rule(net, "fused")
    for rule.engine in ("fused", "graph", "auto"):
        rule.backward(x, y)
        net.relax(x, 2, engine=rule.engine)
    assert seen == ["fused"] * 2 + ["graph"] * 2 + ["auto"] * 2


def test_rows_of_convolutions(gpu: None, without_compile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS_PER_ROUND", 1e-3)
    monkeypatch.setattr(of_contenders, "CONTENDERS_ON_CUDA", {})  # the graph that is played here knows no convolutions
    rows = suite.run(replace(small_convolutional(True), device="cuda"), 0, rounds=1)
    assert [(row.contender, row.status) for row in rows] == [(name, "ok") for name in ("fused", "eager", "autograd")]
    assert {row.predicted_ms for row in rows} == {None}  # the planner knows no steps but those of teams
    assert "| fused, ms " in markdown_table(rows) and "predicted" not in markdown_table(rows)


def test_steps_of_convolutions(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_steps, "CALLS", 2)
    case = replace(small_convolutional(False), device="cuda")
    assert cuda_steps.engine_of(case) == "library"
    assert cuda_steps.engine_of(small_convolutional(False)) == ""
    found = cuda_steps.measured(case, "library")
    predicted = (found.predicted_free_us, found.predicted_nudged_us)
    assert (found.engine, found.team, found.blocks, *predicted) == ("library", "", 0, 0, 0)
    assert found.ms > 0


def test_steps_of_teams(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_steps, "CALLS", 2)
    by_engine = cuda_steps.by_engine
    asked: list[str] = []
    # The CPU has no teams.
    monkeypatch.setattr(
        cuda_steps, "by_engine", lambda engine, case, net: (asked.append(engine), by_engine("", case, net))[1]
    )
    for name in ("ep-1h", "c-ep-1h"):
        case = small(name, device="cuda")
        assert cuda_steps.engine_of(case) == "teams"
        assert cuda_steps.engine_of(case, "library") == "library"
        found, plan = cuda_steps.measured(case, "teams"), cuda_steps.planned(case)
        assert (found.engine, found.team, found.blocks) == ("teams", plan["team"], plan["launch_blocks"])
        nudged = plan["moving_step_us"] if name == "c-ep-1h" else plan["rounds"] * plan["step_us"]
        assert found.predicted_free_us == plan["rounds"] * plan["step_us"] > 0
        assert found.predicted_nudged_us == nudged > 0
    assert set(asked) == {"teams"}


def test_sources_without_a_repository_are_those_of_a_given_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "SOURCES", tmp_path)
    monkeypatch.delenv("COMMIT", raising=False)
    assert environment.commit() == "unknown"
    monkeypatch.setenv("COMMIT", "1234abc")
    assert environment.commit() == "1234abc"


def test_the_command_on_a_gpu(
    gpu: None,
    without_compile: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    case = replace(small("c-ep-1h", device="cuda"), name=breakdown.CASES[1])
    monkeypatch.setattr(command, "chosen_cases", lambda _, device: [replace(case, device=device)])
    assert main(["bench", "--device", "cuda", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuda.csv", "cuda.png"]
    text = (tmp_path / "cuda.csv").read_text()
    for fact in ("gpu: a GPU", "driver: ", f"cuda: {torch.version.cuda}", f"kernels: CUDA {ops.build_info()['cuda']}"):
        assert f"# {fact}" in text
    rows = read_rows(tmp_path / "cuda.csv", suite.Row)
    assert [(row.contender, row.status) for row in rows] == [
        (name, "ok") for name in ("fused", "eager", "same_algebra", "graph", "library")
    ]
    assert {row.threads for row in rows} == {0}
    plan = cuda_steps.planned(case)
    predicted_us = 4 * plan["rounds"] * plan["step_us"] + 3 * plan["moving_step_us"]
    assert rows[0].predicted_ms == pytest.approx(predicted_us / 1e3, rel=1e-4)
    assert {row.predicted_ms for row in rows[1:]} == {None}
    shown = capsys.readouterr().out
    assert "| predicted, ms | eager / fused | same_algebra / fused | graph / fused | library / fused " in shown
    assert f"| {case.name} | GPU     |" in shown


def test_cases_that_the_kernels_refuse_are_named_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cases = [replace(small("ep-1h"), name=name) for name in ("refused", "taken")]
    row = suite.Row("taken", "ep", "1", 1, 1, 1, 1, "fused", "n/a: a test")

    def run(case: Case, threads: int, rounds: int) -> list[suite.Row]:
        if case.name == "refused":
            raise FusedUnavailable("too large")
        return [row]

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(command, "chart", lambda rows: b"")
    monkeypatch.setattr(command, "chosen_cases", lambda _, device: cases)
    command.bench([], "cpu", [1], 1, tmp_path, progress=False)
    assert "refused was not run: too large" in capsys.readouterr().out
    monkeypatch.setattr(command, "chosen_cases", lambda _, device: cases[:1])
    with pytest.raises(FusedUnavailable, match="too large"):
        command.bench([], "cpu", [1], 1, tmp_path, progress=False)


@pytest.mark.parametrize(("name", "batch"), [("ep-2h", 5), ("c-vf-2h", 5), ("ep-2h", 60_000)])
def test_what_the_planner_expects(gpu: None, name: str, batch: int) -> None:
    case = small(name, batch, device="cuda")
    plan = cuda_steps.planned(case)
    assert (plan["rounds"] > 1) == (batch > 1000)
    nudged_us = plan["moving_step_us"] if case.preset.continual else plan["rounds"] * plan["step_us"]
    predicted_us = 4 * plan["rounds"] * plan["step_us"] + 3 * nudged_us
    assert suite._predicted_ms(case) == pytest.approx(predicted_us / 1e3)
    free_alone = suite._predicted_ms(replace(case, relaxes_only=True))
    assert free_alone == pytest.approx(4 * ops.launch_plan(*_circuit_and_input(case))["step_us"] * plan["rounds"] / 1e3)
    assert suite._predicted_ms(replace(case, device="cpu")) is None


def _circuit_and_input(case: Case) -> tuple[Any, Tensor]:
    net, x, _ = case.problem(torch.float32)
    return net.circuit(), x


def test_a_graph_that_cannot_be_captured_is_reported(
    gpu: None, without_compile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(_: object) -> Iterator[None]:
        try:
            yield
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("the capture ended broken")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    rows = suite.run(small("ep-1h", device="cuda"), 0, rounds=1)
    wanted = "n/a: operation not permitted when stream is capturing"
    assert {row.contender: row.status for row in rows}["graph"] == wanted


@pytest.mark.parametrize(
    ("there_is_one", "options", "message"),
    [
        (False, [], "--device cuda: torch sees no CUDA GPU"),
        (True, ["--threads", "2"], "--threads is about the CPU, got --device cuda"),
    ],
)
def test_command_line_refuses_what_does_not_go_with_a_gpu(
    there_is_one: bool,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert main(["bench", "--device", "cuda", *options, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"ceprop: {message}\n"
    assert not (tmp_path / "out").exists()
