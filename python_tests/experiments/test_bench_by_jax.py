"""JAX's training step and what it is compared with in `ceprop bench`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from bench_cases import SETTINGS, small, small_convolutional

from ceprop_cuda.bench import by_jax, suite
from ceprop_cuda.bench.agreement import assert_agreement, outcome
from ceprop_cuda.bench.contenders import CONTENDERS, contenders
from ceprop_cuda.bench.report import lost, markdown_table
from ceprop_cuda.bench.suite import Row


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SETTINGS)
def test_jax_agrees(name: str, dtype: torch.dtype, batch: int) -> None:
    pytest.importorskip("jax")
    case = small(name, batch)
    expected = outcome(case, CONTENDERS["eager"](), dtype)
    for way in ("jax", "jax_gram"):
        build = contenders("cpu", rule=case.rule).get(way)
        assert (build is None) == (way == "jax_gram" and case.rule == "EP")
        if build is not None:
            assert_agreement(case, way, outcome(case, build, dtype), expected)


def test_jax_relaxes() -> None:
    pytest.importorskip("jax")
    case = small("ep-2h", relaxes_only=True)
    expected = outcome(case, CONTENDERS["eager"](), torch.float64)
    assert_agreement(case, "jax", outcome(case, by_jax.ByJax, torch.float64), expected)


@pytest.mark.parametrize("name", ["ep-1h", "ep-2h", "p-3h"])
def test_fused_sgd_agrees(name: str) -> None:
    case = small(name)
    expected = outcome(case, CONTENDERS["eager"](), torch.float64)
    build = contenders("cpu", rule="EP")["fused_sgd"]
    assert_agreement(case, "fused_sgd", outcome(case, build, torch.float64), expected)


def test_what_is_timed_moves_jaxs_parameters_from_the_networks_on() -> None:
    pytest.importorskip("jax")
    case = small("c-vf-2h")
    (net, x, y), (moved, *_), (unmoved, *_) = (case.problem(torch.float64) for _ in range(3))
    step = by_jax.ByJax(case, net)
    step.load(x, y)
    for _ in range(2):
        step.run()
        CONTENDERS["eager"]()(case, moved)(x, y)
    for array, p in zip(step._jax.tree_util.tree_leaves(step._moving), moved.circuit().parameters(), strict=True):
        assert torch.allclose(step._tensor(array), p, rtol=1e-12, atol=1e-12)
    for p, q in zip(net.parameters(), unmoved.parameters(), strict=True):
        assert torch.equal(p, q)
    step.load(x, y)
    assert torch.equal(step._tensor(step._moving.weights[0]), net.circuit().weights[0])


@pytest.mark.parametrize("count", [1, 2])
def test_xla_has_pytorchs_number_of_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    made: list[str | None] = []
    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda: (made.append(os.environ.get("NPROC")), devices())[1])
    monkeypatch.setenv("NPROC", "7")
    monkeypatch.setitem(by_jax._client, "threads", 0)
    for _ in range(2):
        by_jax._jax_with_threads(count)
    assert made == [str(count)] and os.environ["NPROC"] == "7"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dynamics": "energy"}, "units but synchronous, prototypical sigmoid ones"),
        ({"schedule": "asynchronous"}, "units but synchronous, prototypical sigmoid ones"),
        ({"activation": "tanh"}, "units but synchronous, prototypical sigmoid ones"),
        ({"nudge_at": "drive"}, "nudging but once, at the state"),
        ({"feedback": "free"}, "EP with free feedback"),
        ({"tolerance": 0.0}, "phases with a tolerance"),
    ],
)
def test_jax_says_what_it_does_not_cover(changes: dict[str, object], what: str) -> None:
    case = small("ep-1h")
    case = replace(case, preset=replace(case.preset, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^jax does not cover {what}$"):
        by_jax.ByJax(case, case.problem(torch.float32)[0])


def test_jax_does_not_cover_convolutions() -> None:
    case = small_convolutional(True)
    with pytest.raises(ValueError, match=r"^jax does not cover layers but dense ones in a chain$"):
        by_jax.ByJax(case, case.problem(torch.float32)[0])
    assert "jax" not in contenders("cpu", convolutional=True, rule=case.rule)
    assert "jax" not in contenders("cuda", rule=case.rule)


@pytest.mark.usefixtures("without_compile")
@pytest.mark.parametrize("name", ["ep-1h", "c-ep-1h"])
def test_without_jax_it_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    rows = {row.contender: row for row in suite.run(small(name), torch.get_num_threads(), rounds=1)}
    for way in ("jax",) if name == "ep-1h" else ("jax", "jax_gram"):
        assert rows.pop(way).status == "n/a: jax is not installed: pip install 'ceprop_cuda[jax]'"
    assert {row.status for row in rows.values()} == {"ok"}


@pytest.mark.usefixtures("without_compile")
@pytest.mark.parametrize("name", ["ep-1h", "c-vf-1h"])
def test_rows_of_jax(name: str) -> None:
    pytest.importorskip("jax")
    rows = {row.contender: row for row in suite.run(small(name), torch.get_num_threads(), rounds=1)}
    others = ["fused_sgd", "jax"] if name == "ep-1h" else ["jax", "jax_gram"]
    assert [*rows] == ["fused", "eager", "same_algebra", *others]
    assert {row.status for row in rows.values()} == {"ok"}
    base = rows["fused_sgd" if name == "ep-1h" else "fused"].ms
    assert base is not None and rows["jax"].ms is not None
    assert rows["jax"].over_fused == pytest.approx(rows["jax"].ms / base)
    assert "| jax / fused" in markdown_table([*rows.values()])


def test_the_own_step_with_sgd_is_nobody_to_lose_to() -> None:
    row = Row("a", "EP", "7-3", 5, 4, 3, 1, "fused_sgd", "ok", over_fused=0.9)
    assert lost([row, replace(row, contender="jax")]) == ["a, 1 thread: jax takes 0.90 of the time"]
