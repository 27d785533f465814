"""What the check of step loops in benchmarks/sass counts and refuses, and that folder's tables. No compiler is run."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import account
import compiled
import cuda_resources
import kinds
import parts
import pytest
import sources
import step_loops
import steps
from sass_text import LOOPS, line, made_at, read

from ceprop_cuda.tables import read_rows

FLOAT, DOUBLE = "float, Exact, InGrid", "double, Exact, InGrid"


def found_by_hand(tmp_path: Path, kernel: str = FLOAT) -> dict[step_loops.Key, step_loops.Found]:
    """Of a kernel whose loop over steps has something of every kind, and of which something stands before it."""
    (tmp_path / "cuda").mkdir(exist_ok=True)
    run = tmp_path / "cuda" / "run_op.cuh"
    run.write_text("void run() {\n  for (bool ends = false; !ends;) {\n    ends = may_stop();\n  }\n}\n")
    names = ["I2F.RP R0, R1", "I2F.U32.RP R0, R1", "I2F R0, R1", "CALL.REL.NOINC `($__internal_1_$__cuda_sm20_div_s64)"]
    names += [
        "CALL.REL.NOINC `($__internal_2_$__cuda_sm20_rcp_rn_f32_slowpath)",
        "LD.E.128 R0, [R2.64]",
        "LDG.E R0, [R2.64]",
    ]
    names += [
        "ST.E R0, [R2.64]",
        "MEMBAR.ALL.GPU",
        "LDL R0, [R1]",
        "STL [R1], R0",
        "DADD R0, R0, R0",
        "DSETP.GT.AND P0, PT, R0, R2, PT",
    ]
    products = str(tmp_path / "cuda" / "products.cuh")
    in_loop = made_at(("/usr/include/helpers.h", 9), (products, 155), (str(run), 3), (str(run), 9))
    lines = [line(16 * n, text) for n, text in enumerate(names)]
    before = made_at((str(run), 1)) + "".join(lines)
    after = "".join(line(0x1000 + 16 * n, text) for n, text in enumerate(names))
    body = f"{before}{in_loop}.L_x_1:\n{after}{line(0x2000, '@P0 BRA `(.L_x_1)')}{line(0x2010, 'EXIT')}"
    return step_loops.found_in(kernel, read(body), sources.step_loop(run), tmp_path)


def test_what_a_step_loop_has_is_counted(tmp_path: Path) -> None:
    found = found_by_hand(tmp_path)
    counts = {kind: now.count for (_, kind), now in found.items()}
    assert counts == {
        "divisions": 3,
        "generic loads": 1,
        "generic stores": 1,
        "fences": 1,
        "local memory": 2,
        "doubles": 2,
    }
    assert found[FLOAT, "divisions"].where() == "cuda/products.cuh:155 (3)"
    assert (DOUBLE, "doubles") not in found_by_hand(tmp_path, DOUBLE)


def test_a_kernel_without_its_loop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no loop has 85% of what comes from"):
        step_loops.found_in(FLOAT, read(LOOPS), sources.Lines("/s/none.h", frozenset([1])), tmp_path)


def divisions(count: int) -> dict[step_loops.Key, step_loops.Found]:
    return {(FLOAT, "divisions"): step_loops.Found(count, Counter({"cuda/products.cuh:155": count}))}


@pytest.mark.parametrize(
    ("ceilings", "over", "loose"),
    [
        ({(FLOAT, "divisions"): 3}, [], []),
        (
            {(FLOAT, "divisions"): 2},
            [
                "float, Exact, InGrid: 3 divisions in the loop over steps, where sass_loops.csv allows 2; most are of "
                "cuda/products.cuh:155 (3)"
            ],
            [],
        ),
        (
            {(FLOAT, "divisions"): 4},
            [],
            [
                "float, Exact, InGrid: 3 divisions in the loop over steps, fewer than the 4 that sass_loops.csv "
                "allows: lower the ceiling"
            ],
        ),
        ({}, [], ["float, Exact, InGrid: 3 divisions in the loop over steps, for which sass_loops.csv has no ceiling"]),
        (
            {(FLOAT, "divisions"): 3, ("gone", "fences"): 1},
            [],
            ["gone: sass_loops.csv has a ceiling for fences, which were not counted"],
        ),
    ],
)
def test_ceilings_are_tight(ceilings: dict[step_loops.Key, int], over: list[str], loose: list[str]) -> None:
    assert step_loops.faults(divisions(3), ceilings) == (over, loose)


def test_an_update_lowers_a_ceiling_and_never_raises_it(tmp_path: Path) -> None:
    path, made_by = tmp_path / "sass_loops.csv", {"nvcc": "13.0.88", "files": "abc"}
    with pytest.raises(SystemExit, match="--update makes it"):
        step_loops.check(divisions(3), path, made_by, update=False)
    step_loops.check(divisions(3), path, made_by, update=True)
    assert step_loops.ceilings_in(path) == {(FLOAT, "divisions"): 3}
    for update in (False, True):
        with pytest.raises(SystemExit, match=r"4 divisions in the loop over steps, where sass_loops\.csv allows 3"):
            step_loops.check(divisions(4), path, made_by, update)
    with pytest.raises(SystemExit, match=r"lower the ceiling\n.*step_loops.py --update` does so"):
        step_loops.check(divisions(2), path, made_by, update=False)
    step_loops.check(divisions(3), path, made_by | {"files": "def"}, update=False)
    assert "# files: def" in path.read_text()
    step_loops.check(divisions(2), path, made_by, update=True)
    assert step_loops.ceilings_in(path) == {(FLOAT, "divisions"): 2}
    before = path.read_text()
    step_loops.check(divisions(2), path, None, update=False)
    assert path.read_text() == before


def test_nothing_is_compiled_if_the_table_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compilations: list[Path] = []

    def found_in_all(_nvcc: Path, _nvdisasm: Path, csrc: Path) -> dict[step_loops.Key, step_loops.Found]:
        compilations.append(csrc)
        return divisions(3)

    monkeypatch.setattr(compiled, "tools", lambda: (Path("/nowhere/nvcc"), Path("/nowhere/nvdisasm")))
    monkeypatch.setattr(cuda_resources, "run", lambda *command: "release 13.0, V13.0.88")
    monkeypatch.setattr(step_loops, "found_in_all", found_in_all)
    for options, count in ((["--update"], 1), (["--if-changed"], 1), ([], 2)):
        monkeypatch.setattr(sys, "argv", ["step_loops.py", "--out", str(tmp_path), *options])
        step_loops.main()
        assert len(compilations) == count
        assert ("nothing was compiled" in capsys.readouterr().out) == (options == ["--if-changed"])
    monkeypatch.setattr(sys, "argv", ["step_loops.py", "--out", str(tmp_path), "--if-changed", "--sources", "/x"])
    with pytest.raises(SystemExit, match="2"):
        step_loops.main()


# --- The tables


def test_the_table_of_ceilings_has_all_kernels() -> None:
    path = compiled.RESULTS / step_loops.TABLE
    ceilings = step_loops.ceilings_in(path)
    in_one_launch = [
        k for k in cuda_resources.KERNELS if k.split(", ")[1] not in cuda_resources.AROUND_A_LIBRARY.values()
    ]
    wanted = {
        (k, kind) for k in in_one_launch for kind in step_loops.KINDS if kind != "doubles" or k.startswith("float")
    }
    assert set(ceilings) == wanted
    assert min(ceilings.values()) >= 0
    assert {"# nvcc", "# files"} <= {text.partition(":")[0] for text in path.read_text().splitlines()}


def test_the_tables_of_simulations_add_up() -> None:
    rows = read_rows(compiled.RESULTS / "sass_parts.csv", steps.PartRow)
    assert {row.part for row in rows} == {"multiply", "staging", "epilogue"}
    for row in rows:
        counts = [getattr(row, kind) for kind in kinds.KINDS]
        assert sum(counts) == row.instructions > 0
        assert 0 < row.clocks_1_warp <= row.clocks_8_warps * 1.05
        assert (row.multiply_adds >= parts.OUTPUTS * row.items) == (row.part == "multiply") or row.part == "epilogue"
    measured, _ = account.measurements(compiled.RESULTS / "cuda_steps.csv")
    for row in read_rows(compiled.RESULTS / "sass_steps.csv", account.StepRow):
        parts_of_it = [row.multiply_us, row.staging_us, row.epilogue_us, row.barrier_us or 0]
        assert math.isclose(row.simulated_us, sum(parts_of_it), rel_tol=1e-3)
        assert row.measured_us == float(measured[row.case]["free_us"])
