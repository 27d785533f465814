"""`ceprop bench`: that contenders do the same work, and that what is reported is what was measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cuda_steps
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ceprop_cuda import ops
from ceprop_cuda.backends import FusedUnavailable
from ceprop_cuda.bench import breakdown, command, measure, report, suite
from ceprop_cuda.bench import contenders as of_contenders
from ceprop_cuda.bench.agreement import Disagreement, assert_agreement, outcome
from ceprop_cuda.bench.cases import BATCH_SIZES, QUICK, WIDTHS, Case, all_cases, chosen_cases, needed_gflop
from ceprop_cuda.bench.contenders import CONTENDERS, ENGINES, contenders
from ceprop_cuda.bench.figure import chart
from ceprop_cuda.bench.report import breakdown_table, environment, lost, markdown_table, read_rows, write_csv
from ceprop_cuda.cli import main
from ceprop_cuda.presets import PRESETS, Convolutions

SETTINGS = ("ep-1h", "ep-2h", "c-ep-1h", "c-ep-2h", "c-vf-1h", "c-vf-2h", "p-3h")


def small(name: str, batch: int = 5, **changes: object) -> Case:
    """A published setting with few units and steps."""
    preset = PRESETS[name]
    hidden = (12, 11, 10)[: len(preset.hidden)]
    preset = replace(preset, hidden=hidden, free_steps=4, nudged_steps=3, nudging="positive")
    return Case(name, preset, batch, inputs=7, classes=3, **changes)


@pytest.fixture
def without_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes longer than all other tests of this file."""
    monkeypatch.delitem(CONTENDERS, "compile")


# Many samples make the same algebra and the kernels take other forms than few.
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("contender", ["fused", "same_algebra"])
def test_contenders_agree(contender: str, name: str, batch: int) -> None:
    case = small(name, batch)
    expected = outcome(case, CONTENDERS["eager"](), torch.float64)
    assert_agreement(case, contender, outcome(case, CONTENDERS[contender](), torch.float64), expected)


def small_convolutional(continual: bool) -> Case:
    convolutions = Convolutions(channels=(5, 6), kernels=3, paddings=(1, 0), pools="ma")
    preset = replace(PRESETS["p-conv"], convolutions=convolutions, continual=continual, free_steps=4, nudged_steps=3)
    return Case("small", preset, 4, inputs=(2, 8, 9), classes=3)


@pytest.mark.parametrize("continual", [False, True])
@pytest.mark.parametrize("nudge_at", ["state", "drive"])
def test_contenders_for_convolutions_agree(nudge_at: str, continual: bool) -> None:
    case = small_convolutional(continual)
    case = replace(case, preset=replace(case.preset, nudge_at=nudge_at))
    builds = contenders("cpu", convolutional=True)
    assert list(builds) == ["fused", "eager", "compile", "autograd"]
    expected = outcome(case, builds["eager"], torch.float64)
    for name in ("fused", "autograd"):
        assert_agreement(case, name, outcome(case, builds[name], torch.float64), expected)


def test_needed_operations_of_convolutions_by_hand() -> None:
    # 2 -> 5 channels on 8 x 9 places, of which a pooling leaves 4 x 4; 5 -> 6 on 2 x 2, then one; 6 -> 3.
    up = [2 * 4 * 5 * 2 * 9 * 72, 2 * 4 * 6 * 5 * 9 * 4, 2 * 4 * 3 * 6]
    back = [2 * 4 * 5 * 2 * 9 * 16, 2 * 4 * 6 * 5 * 9, 2 * 4 * 3 * 6]
    steps = up[0] + 7 * (up[1] + up[2] + back[1] + back[2])
    contrast = back[0] + 2 * (back[1] + back[2])
    assert needed_gflop(small_convolutional(False)) == pytest.approx(1e-9 * (steps + contrast + 2 * up[1]))
    continual = steps + 3 * (contrast + up[1] + up[0])
    assert needed_gflop(small_convolutional(True)) == pytest.approx(1e-9 * continual)
    relaxes = replace(small_convolutional(False), relaxes_only=True)
    assert needed_gflop(relaxes) == pytest.approx(1e-9 * (up[0] + 4 * (up[1] + up[2] + back[1] + back[2])))


@pytest.mark.parametrize("part", [0, 1])
def test_a_contender_that_computes_something_else_is_named(part: int) -> None:
    case = small("c-ep-2h")
    expected = outcome(case, CONTENDERS["eager"](), torch.float64)
    wrong = outcome(case, CONTENDERS["fused"](), torch.float64)
    wrong[part][1].mul_(1 + 1e-6)
    with pytest.raises(Disagreement, match=r"c-ep-2h: fused disagrees with the reference .* 1 is off"):
        assert_agreement(case, "fused", wrong, expected)


def test_needed_operations_by_hand() -> None:
    inner, through_input = 2 * 5 * (12 * 11 + 11 * 3), 2 * 5 * 7 * 12
    ep = small("ep-2h")
    assert needed_gflop(ep) == pytest.approx(1e-9 * (through_input + 7 * 2 * inner + through_input + 2 * inner))
    assert needed_gflop(replace(ep, relaxes_only=True)) == pytest.approx(1e-9 * (through_input + 4 * 2 * inner))
    literal = 3 * 2 * inner
    gram = 2 * 25 * (7 + 3 * 12) + through_input
    c_vf = through_input + 7 * 2 * inner + min(3 * 2 * through_input, gram) + literal
    assert needed_gflop(small("c-vf-2h")) == pytest.approx(1e-9 * c_vf)
    c_ep = c_vf - literal + min(literal, 8 * 25 * 3 * (12 + 11 + 3) + 2 * inner)
    assert needed_gflop(small("c-ep-2h")) == pytest.approx(1e-9 * c_ep)


def test_the_grid() -> None:
    cases = all_cases()
    names = {case.name for case in cases}
    assert len(names) == len(cases)
    assert set(QUICK) <= names and "p-3h-b20" in names
    for setting in ("c-ep-1h", "c-ep-2h", "c-vf-1h", "c-vf-2h", "ep-1h", "ep-2h"):
        assert {f"{setting}-b{batch}" for batch in BATCH_SIZES} <= names
    assert {f"c-ep-2h-n{width}" for width in WIDTHS} <= names
    widths = [f"c-ep-2h-n{width}" for width in WIDTHS]
    assert [case.name for case in chosen_cases(["relax-*-b24", "c-ep-2h-n*", "*b24"])] == ["relax-2h-b24", *widths]
    assert chosen_cases(["*"]) == cases
    with pytest.raises(ValueError, match="no case matches 'q-1h'; there are c-ep-1h-b1, "):
        chosen_cases(["q-1h"])


@pytest.mark.usefixtures("without_compile")
@pytest.mark.parametrize("relaxes_only", [False, True])
def test_rows_tables_and_figure(relaxes_only: bool, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        rows = suite.run(small("c-ep-1h", relaxes_only=relaxes_only), threads=1, rounds=2)
    finally:
        torch.set_num_threads(threads)
    assert [row.contender for row in rows] == ["fused", "eager", "same_algebra"]
    for row in rows:
        assert (row.status, row.rounds, row.threads, row.sizes) == ("ok", 2, 1, "7-12-3")
        assert row.ms is not None and row.ms > 0 and row.fraction_of_mm is not None and row.fraction_of_mm > 0
    assert rows[0].over_fused == 1
    facts = environment()
    write_csv(tmp_path / "cpu.csv", rows, facts)
    text = (tmp_path / "cpu.csv").read_text()
    assert text.startswith("# date: ") and "# cpu: " in text and "# commit: " in text
    assert str(Path.home()) not in text
    again = read_rows(tmp_path / "cpu.csv")
    assert [row.contender for row in again] == [row.contender for row in rows]
    assert again[1].ms == pytest.approx(rows[1].ms, rel=1e-4)
    assert markdown_table(rows).count("\n") == 2
    assert lost([rows[0], replace(rows[1], over_fused=0.5)]) == ["c-ep-1h, 1 thread: eager takes 0.50 of the time"]
    assert chart(rows).startswith(b"\x89PNG")


def test_a_table_and_a_figure_of_dense_and_convolutional_cases() -> None:
    """As of the whole grid: not every contender is there for every case."""
    dense, convolutional = (
        [
            suite.Row(case, "EP", "7-3", 5, 4, 3, 1, contender, "ok", ms=2.0, ms_q1=1.0, ms_q3=3.0, over_fused=ratio,
                      over_fused_q1=ratio, over_fused_q3=ratio, fraction_of_mm=0.5)
            for contender, ratio in ratios.items()
        ]
        for case, ratios in (("a", {"fused": 1.0, "same_algebra": 1.5}), ("b", {"fused": 1.0, "autograd": 2.5}))
    )  # fmt: skip
    for rows in (dense + convolutional, convolutional + dense):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown_table(rows).splitlines()]
        columns = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
        ratios = {case: (cells["same_algebra / fused"], cells["autograd / fused"]) for case, cells in columns.items()}
        assert ratios == {"a": ("1.5 (1.5 - 1.5)", ""), "b": ("", "2.5 (2.5 - 2.5)")}
        assert chart(rows).startswith(b"\x89PNG")


def test_the_parts_of_a_step_add_up() -> None:
    threads = torch.get_num_threads()
    try:
        parts = breakdown.run(small("ep-2h"), threads=1, rounds=2)
    finally:
        torch.set_num_threads(threads)
    assert [(part.part, part.steps) for part in parts] == [
        ("rule", 0),
        ("call", 0),
        ("load", 0),
        ("free steps", 4),
        ("nudged steps", 3),
        ("once", 0),
    ]
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert breakdown_table(parts).count("\n") == 2


def test_a_contender_that_would_take_too_long_is_said_to_be_skipped(
    without_compile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SECONDS_AT_MOST", 0.0)
    rows = suite.run(small("ep-1h"), torch.get_num_threads(), rounds=1)
    assert all(row.status.startswith("skipped: est. ") and row.ms is None for row in rows)


def test_a_compiler_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no compiler here\nmore")

    monkeypatch.setitem(CONTENDERS, "compile", lambda: partial(broken))
    rows = suite.run(small("ep-1h"), torch.get_num_threads(), rounds=1)
    assert {row.contender: row.status for row in rows}["compile"] == "n/a: no compiler here"


def test_command_line_refuses_unknown_cases(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "--cases", "q-1h", "--out", str(tmp_path / "out")]) == 2
    assert "no case matches 'q-1h'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- On a GPU: everything but the GPU


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
    facts = {"compute_capability": 90, "multiprocessors": 132, "shared_bytes": 232448, "cluster_blocks": 16}
    monkeypatch.setattr(ops._C, "cuda_device", lambda index: facts, raising=False)
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


@pytest.mark.parametrize("before", [None, "auto"])
def test_an_engine_is_forced_in_its_own_calls_only(
    before: str | None, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = "CEPROP_CUDA_ENGINE", []
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)

    def record(backend: str, case: Case, net: Any) -> Any:
        assert backend == "fused"
        return lambda x, y: seen.append(os.environ.get(name))

    monkeypatch.setattr(of_contenders, "_by_rule", record)
    builds = contenders("cuda", convolutional=True)
    assert list(builds) == ["fused", "eager", "compile", "autograd", "graph", "launch", "library"]
    assert not {"launch", "library"} & {*contenders("cuda"), *contenders("cpu", convolutional=True)}
    case = replace(small_convolutional(False), device="cuda")
    net, x, y = case.problem(torch.float32)
    for engine in ENGINES:
        builds[engine](case, net)(x, y)
    assert (seen, os.environ.get(name)) == (["launch", "graph"], before)


def test_both_engines_are_rows(gpu: None, without_compile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS_PER_ROUND", 1e-3)
    monkeypatch.setattr(of_contenders, "CONTENDERS_ON_CUDA", {})  # the graph that is played here knows no convolutions
    rows = suite.run(replace(small_convolutional(True), device="cuda"), 0, rounds=1)
    names = ["fused", "eager", "autograd", "launch", "library"]
    assert [(row.contender, row.status) for row in rows] == [(name, "ok") for name in names]
    assert "launch / fused | library / fused |" in markdown_table(rows)


def test_steps_of_convolutions_by_both_engines(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_steps, "CALLS", 2)
    case = replace(small_convolutional(False), device="cuda")
    assert cuda_steps.engines(case) == ["launch", "library"]
    assert cuda_steps.engines(small("ep-1h", device="cuda")) == ["launch"]
    assert cuda_steps.engines(small_convolutional(False)) == [""]
    found = [cuda_steps.measured(case, engine) for engine in cuda_steps.engines(case)]
    assert [(steps.engine, steps.exchange == "library") for steps in found] == [("launch", False), ("library", True)]
    assert all(steps.predicted_us > 0 and steps.ms > 0 for steps in found)


def test_sources_without_a_repository_are_those_of_a_given_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "SOURCES", tmp_path)
    monkeypatch.delenv("COMMIT", raising=False)
    assert report.commit() == "unknown"
    monkeypatch.setenv("COMMIT", "1234abc")
    assert report.commit() == "1234abc"


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
    rows = read_rows(tmp_path / "cuda.csv")
    assert [(row.contender, row.status) for row in rows] == [
        (name, "ok") for name in ("fused", "eager", "same_algebra", "graph")
    ]
    assert {row.threads for row in rows} == {0}
    step_us = ops.launch_plan(*_circuit_and_input(case))["step_us"]
    assert rows[0].predicted_ms == pytest.approx(step_us * 7 / 1e3, rel=1e-4)
    assert {row.predicted_ms for row in rows[1:]} == {None}
    shown = capsys.readouterr().out
    assert "| predicted, ms | eager / fused | same_algebra / fused | graph / fused |" in shown
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
