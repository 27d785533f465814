"""`ceprop bench`: that contenders do the same work, and that what is reported is what was measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bench_cases import SETTINGS, small, small_convolutional

from ceprop_cuda.bench import breakdown, suite
from ceprop_cuda.bench.agreement import Disagreement, assert_agreement, outcome
from ceprop_cuda.bench.cases import BATCH_SIZES, QUICK, WIDTHS, all_cases, chosen_cases, needed_gflop
from ceprop_cuda.bench.contenders import CONTENDERS, contenders
from ceprop_cuda.bench.figure import chart
from ceprop_cuda.bench.report import breakdown_table, lost, markdown_table
from ceprop_cuda.bench.suite import Row
from ceprop_cuda.cli import main
from ceprop_cuda.environment import environment
from ceprop_cuda.output.tables import read_rows, write_csv


# Many samples make the same algebra and the kernels take other forms than few.
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("contender", ["fused", "same_algebra"])
def test_contenders_agree(contender: str, name: str, batch: int) -> None:
    case = small(name, batch)
    expected = outcome(case, CONTENDERS["eager"](), torch.float64)
    assert_agreement(case, contender, outcome(case, CONTENDERS[contender](), torch.float64), expected)


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
    by_jax = ["jax"] if relaxes_only else ["jax", "jax_gram"]
    assert [row.contender for row in rows] == ["fused", "eager", "same_algebra", *by_jax]
    rows = rows[:3]  # see test_bench_by_jax.py
    for row in rows:
        assert (row.status, row.rounds, row.threads, row.sizes) == ("ok", 2, 1, "7-12-3")
        assert row.ms is not None and row.ms > 0 and row.fraction_of_mm is not None and row.fraction_of_mm > 0
    assert rows[0].over_fused == 1
    facts = environment()
    write_csv(tmp_path / "cpu.csv", rows, facts)
    text = (tmp_path / "cpu.csv").read_text()
    assert text.startswith("# date: ") and "# cpu: " in text and "# commit: " in text
    assert str(Path.home()) not in text
    again = read_rows(tmp_path / "cpu.csv", Row)
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
    assert all(row.ms is None for row in rows)
    of_package = [row for row in rows if row.contender != "jax"]  # which may not be installed
    assert len(of_package) > 3 and all(row.status.startswith("skipped: est. ") for row in of_package)


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
