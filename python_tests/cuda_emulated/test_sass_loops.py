"""What the check of step loops in benchmarks/sass counts and refuses, and that folder's tables. No compiler is run."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import compiled
import cuda_resources
import pytest
import step_loops
import teams
from kernel import MOVING, RELAXATION, RESTING, Kernel
from sass_text import LOOPS, line, made_at, read

from ceprop_cuda.output.tables import read_rows

FLOAT, DOUBLE = "float, Team4, InGrid", "double, Team2, InGrid"
REST = (FLOAT, RESTING)
TEAM = "cuda/teams/team.cuh"


def written(folder: Path) -> Path:
    """Sources with a loop over steps, and a barrier of the grid."""
    (folder / "cuda" / "teams").mkdir(parents=True)
    (folder / RELAXATION).write_text("void run() {\n  for (bool ends = false; !ends;) {\n    step(0);\n  }\n}\n")
    (folder / "cuda/teams/run.cuh").write_text("void run_rounds() {\n  run();\n}\n")
    (folder / TEAM).write_text("struct Grid {\n  void meet() {}\n};\n")
    return folder


EVERY_KIND = [
    "I2F.RP R0, R1",
    "I2F.U32.RP R0, R1",
    "I2F R0, R1",
    "CALL.REL.NOINC `($__internal_1_$__cuda_sm20_div_s64)",
    "CALL.REL.NOINC `($__internal_2_$__cuda_sm20_rcp_rn_f32_slowpath)",
    "LD.E.128 R0, [R2.64]",
    "LDG.E R0, [R2.64]",
    "ST.E R0, [R2.64]",
    "MEMBAR.ALL.GPU",
    "LDL R0, [R1]",
    "STL [R1], R0",
    "DADD R0, R0, R0",
    "DSETP.GT.AND P0, PT, R0, R2, PT",
]
BARRIER = ["MEMBAR.ALL.GPU", "LD.E.STRONG.GPU R0, [R2.64+0x4]"]


def by_hand(csrc: Path, name: str = FLOAT, rests: bool = True, address: int = 0x1000) -> str:
    """A loop over steps that has something of every kind and a barrier of the grid."""

    def file(path: str) -> str:
        return str(csrc / path)

    frames = [(file(RELAXATION), 3), *([(file("cuda/teams/run.cuh"), 2)] if rests else [])]
    steps = [*frames, (file("cuda/teams/run.cuh"), 9)]
    texts = [(EVERY_KIND, [("/usr/include/helpers.h", 9), (file("cuda/teams/lanes.cuh"), 155), *steps])]
    texts += [(BARRIER, [(file(TEAM), 2), *steps])]
    body = f".L_x_{address}:\n"
    at = address
    for names, chain in texts:
        body += made_at(*chain)
        for text in names:
            body += line(at, text)
            at += 16
    return body + line(at, f"@P0 BRA `(.L_x_{address})")


def found_by_hand(folder: Path, name: str = FLOAT) -> dict[step_loops.Key, step_loops.Found]:
    """What stands before the loop has something of every kind, too."""
    csrc = written(folder / name)
    before = made_at((str(csrc / RELAXATION), 1)) + "".join(line(16 * n, text) for n, text in enumerate(EVERY_KIND))
    return step_loops.found_in(Kernel(name, read(before + by_hand(csrc) + line(0x2000, "EXIT")), csrc))


def test_what_a_step_loop_has_is_counted(tmp_path: Path) -> None:
    found = found_by_hand(tmp_path)
    counts = {kind: now.count for (_, _, kind), now in found.items()}
    assert counts == {
        "divisions": 3,
        "generic loads": 1,
        "generic stores": 1,
        "fences": 1,
        "local memory": 2,
        "doubles": 2,
        "fences of the grid's barrier": 1,
        "instructions": len(EVERY_KIND) + len(BARRIER) + 1,
    }
    assert found[(*REST, "divisions")].where() == "cuda/teams/lanes.cuh:155 (3)"
    assert found[(*REST, "fences of the grid's barrier")].where() == f"{TEAM}:2 (1)"
    assert (DOUBLE, RESTING, "doubles") not in found_by_hand(tmp_path, DOUBLE)


def test_a_kernel_that_moves_weights_has_two_loops(tmp_path: Path) -> None:
    csrc = written(tmp_path)
    loops = by_hand(csrc) + by_hand(csrc, rests=False, address=0x2000) + line(0x3000, "EXIT")
    found = step_loops.found_in(Kernel("float, Team4, InCluster, MovesInGrid", read(loops), csrc))
    assert {loop for _, loop, _ in found} == {RESTING, MOVING}
    for name in (FLOAT, "float, Team4, InGrid, MovesInGrid"):
        with pytest.raises(ValueError, match="loops over steps are"):
            step_loops.found_in(Kernel(name, read(loops), csrc))


def test_a_kernel_without_its_loop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loops over steps are \[\], expected \['weights rest'\]"):
        step_loops.found_in(Kernel(FLOAT, read(LOOPS), written(tmp_path)))


def divisions(count: int) -> dict[step_loops.Key, step_loops.Found]:
    return {(*REST, "divisions"): step_loops.Found(count, Counter({"cuda/teams/lanes.cuh:155": count}))}


def instructions(count: int) -> dict[step_loops.Key, step_loops.Found]:
    return {(*REST, "instructions"): step_loops.Found(count, Counter({"cuda/teams/lanes.cuh:155": count}))}


@pytest.mark.parametrize(
    ("ceilings", "over", "loose"),
    [
        ({(*REST, "divisions"): 3}, [], []),
        (
            {(*REST, "divisions"): 2},
            [
                "float, Team4, InGrid: 3 divisions in the loop over steps in which weights rest, where sass_loops.csv "
                "allows 2; most are of cuda/teams/lanes.cuh:155 (3)"
            ],
            [],
        ),
        (
            {(*REST, "divisions"): 4},
            [],
            [
                "float, Team4, InGrid: 3 divisions in the loop over steps in which weights rest, fewer than the 4 "
                "that sass_loops.csv allows: lower the ceiling"
            ],
        ),
        (
            {},
            [],
            [
                "float, Team4, InGrid: 3 divisions in the loop over steps in which weights rest, for which "
                "sass_loops.csv has no ceiling"
            ],
        ),
        (
            {(*REST, "divisions"): 3, ("gone", MOVING, "fences"): 1},
            [],
            ["gone: sass_loops.csv has a ceiling for fences where weights move, which were not counted"],
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
    assert step_loops.ceilings_in(path) == {(*REST, "divisions"): 3}
    for update in (False, True):
        with pytest.raises(SystemExit, match=r"4 divisions in .* weights rest, where sass_loops\.csv allows 3"):
            step_loops.check(divisions(4), path, made_by, update)
    with pytest.raises(SystemExit, match=r"lower the ceiling\n.*step_loops.py --update` does so"):
        step_loops.check(divisions(2), path, made_by, update=False)
    step_loops.check(divisions(3), path, made_by | {"files": "def"}, update=False)
    assert "# files: def" in path.read_text()
    step_loops.check(divisions(2), path, made_by, update=True)
    assert step_loops.ceilings_in(path) == {(*REST, "divisions"): 2}
    before = path.read_text()
    step_loops.check(divisions(2), path, None, update=False)
    assert path.read_text() == before


def test_a_loop_may_grow_by_a_tenth(tmp_path: Path) -> None:
    path, made_by = tmp_path / "sass_loops.csv", {"nvcc": "13.0.88", "files": "abc"}
    key = (*REST, "instructions")
    step_loops.check(instructions(1000), path, made_by, update=True)
    for count in (900, 1100):
        step_loops.check(instructions(count), path, made_by, update=False)
        assert step_loops.ceilings_in(path) == {key: 1000}  # else it might grow by a tenth again and again
    for update in (False, True):
        with pytest.raises(SystemExit, match=r"1101 instructions in .*, where sass_loops\.csv allows 1000"):
            step_loops.check(instructions(1101), path, made_by, update)
    with pytest.raises(SystemExit, match="lower the ceiling"):
        step_loops.check(instructions(899), path, made_by, update=False)
    step_loops.check(instructions(1100), path, made_by, update=True)
    assert step_loops.ceilings_in(path) == {key: 1000}
    step_loops.check(instructions(899), path, made_by, update=True)
    assert step_loops.ceilings_in(path) == {key: 899}


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


def test_the_table_of_ceilings_has_all_kernels_and_allows_nothing() -> None:
    path = compiled.RESULTS / step_loops.TABLE
    ceilings = step_loops.ceilings_in(path)
    of_teams = [name for name in cuda_resources.KERNELS if "Team" in name]
    loops = [(name, RESTING) for name in of_teams if ", InGrid, Moves" not in name]
    loops += [(name, MOVING) for name in of_teams if ", Moves" in name]
    loops += [(name, RESTING) for name in cuda_resources.KERNELS if name.endswith("Maps")]
    assert set(ceilings) == {
        (name, loop, kind)
        for name, loop in loops
        for kind in step_loops.KINDS
        if kind != "doubles" or name.startswith("float")
    }
    for (name, loop, kind), ceiling in ceilings.items():
        meets = "InGrid" in (name if loop == MOVING else name.partition(", Moves")[0])
        if kind in step_loops.FORBIDDEN:
            assert ceiling == 0
        else:
            assert (ceiling > 0) == (meets or kind == "instructions")
    assert {"# nvcc", "# files"} <= {text.partition(":")[0] for text in path.read_text().splitlines()}


def test_the_table_of_steps_adds_up() -> None:
    rows = read_rows(compiled.RESULTS / "sass_teams.csv", teams.TeamRow)
    assert list(dict.fromkeys(row.case for row in rows)) == list(teams.CASES)
    for row in rows:
        assert row.phase == ("free, nudged" if not row.case.startswith("c-") else row.phase)
        assert (row.teams == 1) == (row.team == "grid" or row.phase == "nudged")  # all samples at once
        assert 0 <= row.update_clocks < row.clocks and (row.update_clocks > 0) == (row.phase == "nudged")
        beside = row.exchange_clocks - teams.EXCHANGE_CLOCKS[row.team]
        if row.team == "grid":  # copies of what a block reads; each warp makes its own, beside others' work, or all do
            alone = row.octets == 1 and row.phase != "nudged"
            assert beside >= 0 if alone else beside > teams.CLOCKS_OF_A_COPY
        else:  # a block's warps meet before they move weights
            assert beside == (teams.EXCHANGE_CLOCKS["block"] if row.phase == "nudged" else 0)
        assert 0 <= row.unwanted < 0.01 * row.instructions
        assert 0 < row.multiply_adds < row.instructions < row.clocks
        us = (row.clocks + row.exchange_clocks) / teams.CLOCKS_OF_A_MICROSECOND
        assert row.step_us == pytest.approx(us, rel=1e-3)  # none has more groups than one in a cluster
    by_phase = {(row.case, row.phase): row.step_us for row in rows}
    for case in teams.CASES:
        if case.startswith("c-"):
            assert by_phase[case, "free"] < by_phase[case, "nudged"]
