"""What `make cuda-check` reads of ptxas and of the disassembler, and what it refuses; no compiler is run."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cuda_resources
import pytest


def symbol(number: str, samples: int, place: str, moves: str) -> str:
    """``moves``: the place where weights do, if they do."""
    team = f"NS1_{len(place)}{place}E"
    moving = "v" if not moves else "S2_" if moves == place else f"NS1_{len(moves)}{moves}E"
    return f"_ZN6ceprop4cuda5teams8run_teamI{number}Li{samples}E{team}{moving}EEvNS1_7ProblemIT_EE"


GRID, CLUSTER = symbol("f", 4, "InGrid", ""), symbol("f", 3, "InCluster", "InGrid")
THREADS = {"float": 384, "double": 256, "float, Maps": 512, "double, Maps": 256}


def report(
    registers: int = 168, stack: int = 0, stores: int = 0, loads: int = 0, called: int = 0, shared: str = ""
) -> str:
    """ptxas' words for a kernel, a function that it calls, and the stub of another."""
    return f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{GRID}' for 'sm_75'
ptxas info    : Function properties for {GRID}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers{shared}, 3320 bytes cmem[0], 344 bytes cmem[2]
ptxas info    : Compile time = 1366.582 ms
ptxas info    : Function properties for __internal_accurate_pow
    {called} bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '{CLUSTER}' for 'sm_75'
ptxas info    : Function properties for {CLUSTER}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers, 3320 bytes cmem[0]
ptxas info    : Compile time = 0.188 ms
"""


def disassembly(body: str) -> str:
    return f"""
	code for sm_75
		Function : {GRID}
	.headerflags	@"EF_CUDA_SM75 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM75)"
{body}		..........


		Function : {CLUSTER}
	.headerflags	@"EF_CUDA_SM75 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM75)"
        /*0000*/                   MOV R1, c[0x0][0x28] ;      /* 0x00000a0000017a02 */
                                                               /* 0x000fc60000000f00 */
        /*0010*/                   BPT.TRAP 0x1 ;              /* 0x000000040000795c */
                                                               /* 0x000fea0000300000 */
        /*0020*/                   BRA 0x20;                   /* 0xfffffff000007947 */
        /*0030*/                   NOP;                        /* 0x0000000000007918 */
		..........
"""


LINES = (
    "        /*38490*/              @!P3 IMAD.MOV.U32 R30, RZ, RZ, RZ ;      /* 0x000000ffff1eb224 */\n"
    "                                                                        /* 0x000fcc00078e00ff */\n"
    "        /*384a0*/                   FFMA R4, R8, R12, R4;               /* 0x0000001e181cb228 */\n"
    "        /*384b0*/              @P0  LD.E.64 R8, [R2.64+0x10] ;          /* 0x0000100402087980 */\n"
    "        /*384c0*/                   LDG.E R9, [R4.64] ;                 /* 0x0000000404097981 */\n"
)


# --- Reading


@pytest.mark.parametrize("moves", ["", "InBlock", "InCluster", "InGrid"])
@pytest.mark.parametrize("place", ["InBlock", "InCluster", "InGrid"])
@pytest.mark.parametrize(("number", "samples"), [("f", 1), ("f", 3), ("f", 4), ("d", 2)])
def test_symbols_become_readable(number: str, samples: int, place: str, moves: str) -> None:
    readable = f"{cuda_resources.TYPES[number]}, Team{samples}, {place}" + (f", Moves{moves}" if moves else "")
    assert cuda_resources.readable(symbol(number, samples, place, moves)) == readable
    exists = moves in ("", "InGrid") or (
        moves == place and (place, samples) not in [("InBlock", 3), ("InBlock", 4), ("InCluster", 4)]
    )
    if place == "InGrid":
        exists = exists and samples in (4, 2)
    assert (readable in cuda_resources.KERNELS) == exists


def test_other_symbols_stay() -> None:
    assert cuda_resources.readable("_Z5otherv") == "_Z5otherv"


def test_a_report_is_read() -> None:
    read = cuda_resources.parse_report(report(registers=170, stack=8, stores=12, loads=16, shared=", 1024 bytes smem"))
    assert read["float, Team4, InGrid"] == {
        "registers": 170,
        "static_shared_bytes": 1024,
        "stack_bytes": 8,
        "spill_store_bytes": 12,
        "spill_load_bytes": 16,
    }
    assert read["float, Team3, InCluster, MovesInGrid"]["registers"] == 4
    assert list(read) == ["float, Team4, InGrid", "float, Team3, InCluster, MovesInGrid"]


def test_frames_of_called_functions_count() -> None:
    assert cuda_resources.parse_report(report(stack=8, called=24))["float, Team4, InGrid"]["stack_bytes"] == 32


def test_instructions_are_counted() -> None:
    read = cuda_resources.parse_disassembly(disassembly(LINES * 20))
    assert read["float, Team4, InGrid"] == cuda_resources.Disassembled(80, generic_loads=20, traps=0)
    assert read["float, Team3, InCluster, MovesInGrid"] == cuda_resources.Disassembled(3, generic_loads=0, traps=1)


def test_rows_of_both() -> None:
    grid, cluster = cuda_resources.resources(75, report(), disassembly(LINES * 20))
    assert (grid.kernel, grid.registers, grid.is_stub) == ("float, Team4, InGrid", 168, False)
    assert (cluster.kernel, cluster.registers, cluster.is_stub) == ("float, Team3, InCluster, MovesInGrid", 4, True)


# --- Refusing


def sound(architecture: int) -> list:
    """What all kernels should be like."""
    rows = []
    for kernel in cuda_resources.KERNELS:
        there = cuda_resources.exists_on(kernel, architecture)
        counted = (14000, 130, 9) if there else (3, 0, 1)
        registers = (128 if kernel == "float, Maps" else 168) if there else 4
        rows.append(cuda_resources.Resources(architecture, kernel, registers, 0, 0, 0, 0, *counted))
    return rows


@pytest.mark.parametrize("architecture", cuda_resources.ARCHITECTURES)
def test_sound_kernels_pass(architecture: int) -> None:
    assert len(cuda_resources.KERNELS) == len(set(cuda_resources.KERNELS)) == 33
    assert cuda_resources.faults(sound(architecture), [architecture], THREADS) == []


def test_what_architectures_have() -> None:
    exist = {
        a: sum(cuda_resources.exists_on(kernel, a) for kernel in cuda_resources.KERNELS) for a in (75, 80, 89, 90, 120)
    }
    assert exist == {75: 20, 80: 20, 89: 20, 90: 33, 120: 33}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spill_store_bytes": 12}, "spills registers, 12 bytes stored and 0 loaded"),
        ({"spill_load_bytes": 16}, "spills registers, 0 bytes stored and 16 loaded"),
        ({"stack_bytes": 40}, "a stack frame of 40 bytes"),
        ({"registers": 171}, "171 registers, where blocks of 384 threads leave 170"),
        ({"generic_loads": 1848}, "1848 of 14000 instructions are loads from any memory"),
        ({"instructions": 3, "generic_loads": 0, "traps": 1}, "a stub that traps, where the architecture could run it"),
    ],
)
def test_faults_are_named(changes: dict[str, int], message: str) -> None:
    rows = [replace(row, **changes) if row.kernel == "float, Team4, InGrid, MovesInGrid" else row for row in sound(90)]
    (fault,) = cuda_resources.faults(rows, [90], THREADS)
    assert fault.startswith("sm_90, float, Team4, InGrid, MovesInGrid: ")
    assert message in fault


def test_faults_are_found_in_the_tools_words() -> None:
    rows = cuda_resources.resources(75, report(registers=171, stack=40, stores=8), disassembly(LINES * 20))
    found = [fault for fault in cuda_resources.faults(rows, [75], THREADS) if "not found" not in fault]
    assert [re.sub(r".*: ", "", fault) for fault in found] == [
        "spills registers, 8 bytes stored and 0 loaded",
        "a stack frame of 40 bytes",
        "171 registers, where blocks of 384 threads leave 170",
        "20 of 80 instructions are loads from any memory",
    ]


def test_larger_blocks_leave_fewer_registers() -> None:
    faults = cuda_resources.faults(sound(90), [90], THREADS | {"double": 512})
    assert len(faults) == 11
    assert all(fault.startswith("sm_90, double, ") for fault in faults)
    assert all("168 registers, where blocks of 512 threads leave 128" in fault for fault in faults)


@pytest.mark.parametrize("kernel", ["float, Team1, InCluster", "double, Team2, InCluster, MovesInGrid", "float, Maps"])
def test_kernels_that_cannot_run_must_be_stubs(kernel: str) -> None:
    rows = [replace(row, instructions=9000) if row.kernel == kernel else row for row in sound(75)]
    (fault,) = cuda_resources.faults(rows, [75], THREADS)
    assert fault == f"sm_75, {kernel}: 9000 instructions, where a stub must trap"


def test_missing_kernels_are_named() -> None:
    (fault,) = cuda_resources.faults(sound(90)[1:], [90], THREADS)
    assert fault == f"sm_90, {cuda_resources.KERNELS[0]}: not found in what the compiler reports"


def test_threads_of_the_launch_bounds() -> None:
    assert cuda_resources.block_threads() == THREADS


def test_a_table_of_registers() -> None:
    lines = cuda_resources.table(sound(75) + sound(90)).splitlines()
    assert lines[0] == "| kernel | sm_75 | sm_90 |"
    assert "| float, Team4, InGrid | 168 | 168 |" in lines
    assert "| float, Team3, InCluster, MovesInGrid | - | 168 |" in lines


# --- Tools that are not there


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_resources, "find_nvcc", lambda environment: None)
    monkeypatch.setattr(sys, "argv", ["cuda_resources.py"])


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEPROP_CUDA", raising=False)
    with pytest.raises(SystemExit, match="no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"):
        cuda_resources.main()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_is_skipped_where_cuda_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEPROP_CUDA", "0")
    cuda_resources.main()
    assert "as CEPROP_CUDA=0 asks" in capsys.readouterr().out


def test_without_a_disassembler_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_resources, "find_nvcc", lambda environment: Path("/nowhere/nvcc"))
    monkeypatch.setattr(cuda_resources, "find_disassembler", lambda nvcc: None)
    monkeypatch.setattr(sys, "argv", ["cuda_resources.py"])
    with pytest.raises(SystemExit, match="no cuobjdump"):
        cuda_resources.main()


def test_where_nvcc_is_sought(tmp_path: Path) -> None:
    def toolkit(name: str) -> Path:
        nvcc = tmp_path / name / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
        return nvcc

    home, on_path = toolkit("home"), toolkit("other")
    path = str(on_path.parent)
    assert cuda_resources.find_nvcc({"CUDA_HOME": str(tmp_path / "home"), "PATH": path}) == home
    assert cuda_resources.find_nvcc({"CUDA_HOME": str(tmp_path / "empty"), "PATH": path}) == on_path
    assert cuda_resources.find_nvcc({"PATH": path}) == on_path


# --- The table of before


def test_a_table_holds_while_files_and_compiler_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = tmp_path / "results" / "cuda_resources.csv", sound(75) + sound(90)
    made_by = cuda_resources.what_made("13.0.88")
    assert cuda_resources.read_table(path, made_by) is None
    cuda_resources.write_table(path, rows, made_by)
    assert {"# date", "# commit", "# nvcc", "# files"} == set(re.findall(r"^# \w+", path.read_text(), re.MULTILINE))
    assert cuda_resources.read_table(path, cuda_resources.what_made("13.0.88")) == rows
    assert cuda_resources.read_table(path, cuda_resources.what_made("13.0.89")) is None

    csrc = tmp_path / "csrc"
    shutil.copytree(cuda_resources.SOURCES.parent, csrc)
    monkeypatch.setattr(cuda_resources, "SOURCES", csrc / "cuda")
    assert cuda_resources.read_table(path, cuda_resources.what_made("13.0.88")) == rows
    for name in ("model/unit_math.h", "cuda/teams/problem.h", "cuda/aten/kernels.cu"):
        file = csrc / name
        text = file.read_text()
        file.write_text(text + "\n")
        assert cuda_resources.read_table(path, cuda_resources.what_made("13.0.88")) is None
        file.write_text(text)
    (csrc / "cuda" / "new.cuh").touch()
    assert cuda_resources.read_table(path, cuda_resources.what_made("13.0.88")) is None


def test_a_part_of_a_table_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda_resources.py", "--if-changed", "--architectures", "90"])
    with pytest.raises(SystemExit, match="2"):
        cuda_resources.main()
    assert "--if-changed takes the table of all architectures" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [False, True])
def test_a_table_that_holds_is_checked_and_not_compiled(
    fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for architecture in cuda_resources.ARCHITECTURES for row in sound(architecture)]
    if fault:
        rows[0] = replace(rows[0], stack_bytes=40)
    cuda_resources.write_table(tmp_path / "cuda_resources.csv", rows, cuda_resources.what_made("13.0.88"))
    compiled: list[int] = []

    def compile_all(_nvcc: Path, _disassembler: Path, architectures: list[int], _jobs: int) -> list:
        compiled.extend(architectures)
        return rows

    monkeypatch.setattr(cuda_resources, "find_nvcc", lambda environment: Path("/nowhere/nvcc"))
    monkeypatch.setattr(cuda_resources, "find_disassembler", lambda nvcc: Path("/nowhere/cuobjdump"))
    monkeypatch.setattr(cuda_resources, "run", lambda *command: "release 13.0, V13.0.88")
    monkeypatch.setattr(cuda_resources, "compile_all", compile_all)
    words = ["cuda_resources.py", "--out", str(tmp_path)]
    for options, expected in ([["--if-changed"], []], [[], [*cuda_resources.ARCHITECTURES]]):
        compiled.clear()
        monkeypatch.setattr(sys, "argv", words + options)
        if fault:
            with pytest.raises(SystemExit, match="a stack frame of 40 bytes"):
                cuda_resources.main()
        else:
            cuda_resources.main()
            assert ("nothing was compiled" in capsys.readouterr().out) == (not expected)
        assert compiled == expected
