"""benchmarks/gpu/run.sh without a GPU: its dry run, what its steps do when they fail or are stopped, its last table."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import teams
from compiled import RESULTS
from kept_programs import locked
from project import ROOT

from ceprop_cuda.output.tables import read_rows

GPU = ROOT / "benchmarks" / "gpu"
RUN = GPU / "run.sh"

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs timeout of the GNU coreutils")


@pytest.fixture
def alone() -> Iterator[None]:
    """One worker at a time: all compile the microbenchmarks into the same folder."""
    with locked("microbenchmarks"):
        yield


def outcomes(text: str) -> dict[str, str]:
    """What became of each step, by its name: the first word."""
    lines = [line[3:].split(": ", 1) for line in text.splitlines() if line.startswith("== ")]
    return {name: what.split()[0] for name, what in (line for line in lines if len(line) == 2)}


def cells(table: str, first: str) -> list[list[str]]:
    """The lines of the Markdown table whose first column is called ``first``."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    begin = next(i for i, line in enumerate(lines) if line[0] == first)
    rows = lines[begin + 2 :]
    end = next((i for i, line in enumerate(rows) if set(line[0]) == {"-"}), len(rows) + 1)
    return rows[: end - 1]


def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=os.environ | settings)


def shell(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of bash with the functions of steps.sh."""
    return run("bash", "-euc", f"source '{GPU}/steps.sh'\nbegin_steps '{folder}' 60\n{program}")


def by_machine_code() -> list[tuple[str, float]]:
    """Steps of teams, by names of the table."""
    rows = read_rows(RESULTS / "sass_teams.csv", teams.TeamRow)
    return [(f"{row.phase.partition(',')[0]}/{row.case}/teams", row.rounds * row.step_us) for row in rows]


# --- The dry run


@pytest.mark.usefixtures("alone")
def test_a_dry_run(tmp_path: Path) -> None:
    done = run(RUN, "--dry", "--out", tmp_path, PYTHON=sys.executable, COMMIT="1234abc")
    assert done.returncode == 0, done.stdout + done.stderr
    found = outcomes(done.stdout)
    wanted = ("build", "tests of teams", "tests of maps", "steps", "tests of the library", "calls", "bench")
    assert {name: found.get(name) for name in wanted} == dict.fromkeys(wanted, "ok")
    assert found["micro"] == ("ok" if shutil.which("nvcc") else "not")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"run.log", "tests.txt", "cpu_steps.csv", "cpu.csv", "calls.csv", "report.csv"}
    assert done.stdout.count(" ncu --clock-control none ") == 4
    tests = (tmp_path / "tests.txt").read_text()
    assert tests.index("test_cuda.py::test_agreement") < tests.index("test_cuda_graphs.py::test_agreement")
    predicted = [line["name"] for line in csv.DictReader((GPU / "predictions.csv").open())]
    assert [line[0] for line in cells(done.stdout, "name")] == predicted + [name for name, _ in by_machine_code()]
    text = (tmp_path / "report.csv").read_text()
    assert text.startswith("# date: 2") and "# torch: " in text and "# step bench: ok" in text
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text
    assert {line[0]: line[1].split()[0] for line in cells(done.stdout, "step")}["bench"] == "ok"


@pytest.mark.parametrize("arguments", [["--wet"], ["--minutes", "9.5"], ["--out"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert run(RUN, *arguments).returncode in (1, 2)


def test_what_others_keep_in_a_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cuda.csv").write_text("dear to someone")
    done = run(RUN, "--dry", "--out", tmp_path)
    assert done.returncode == 2 and "--out needs a new folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cuda.csv"]


def script(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}")
    file.chmod(0o755)
    return file


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """An interpreter whose training steps never end, and whose tests fail."""
    return script(
        tmp_path / "python",
        f"""case "$*" in
*report.py*) exec {sys.executable} "$@" ;;
*"-m pytest"*) echo one test failed; exit 1 ;;
*cuda_steps.py*) echo begun; sleep 1000 ;;
*) echo 1.2.3 ;;
esac
""",
    )


@pytest.mark.usefixtures("alone")
def test_stopped_in_the_middle_it_leaves_what_it_has(stub: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHON": str(stub)}
    with subprocess.Popen([RUN, "--dry", "--out", out], stdout=subprocess.PIPE, text=True, env=environment) as process:
        for _ in range(900):
            if (out / "run.log").exists() and "begun" in (out / "run.log").read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    found = outcomes((out / "run.log").read_text())
    compiled = "ok" if shutil.which("nvcc") else "not"
    assert found == {
        "micro": compiled,
        "build": "ok",
        "tests of teams": "failed",
        "tests of maps": "failed",
        "steps": "stopped",
    }
    assert found == {line[0]: line[1].split()[0] for line in cells(shown, "step")}
    assert "one test failed" in (out / "tests.txt").read_text()
    assert "# step steps: stopped" in (out / "report.csv").read_text()


# What stands for the tools of a machine with a GPU. The microbenchmarks find none, and fail. The dry run compiles them.
NVCC = """while [ $# -gt 0 ] && [ "$1" != -o ]; do shift; done
[ "$1" = -o ] || { echo "release 13.0, V13.0.1"; exit; }
printf '#!/bin/sh\n[ $# = 0 ] && exit 2\necho no GPU >&2\nexit 1\n' >"$2"
chmod +x "$2"
"""
INTERPRETER = f"""case "$*" in
*report.py*|*counters.py*) exec {sys.executable} "$@" ;;
*setup.py*) echo "built for $TORCH_CUDA_ARCH_LIST" ;;
*"-c import torch"*) echo 1.2.3 ;;
*"-m pytest"*) echo "$*" ;;
*) echo "called $*" ;;
esac
"""
NVIDIA_SMI = """case "$*" in
*compute_cap*) echo 9.0 ;;
*clocks*) echo "1980 MHz, 1980 MHz, 2619 MHz" ;;
*=name*) echo "NVIDIA X100" ;;
*) echo 580.1 ;;
esac
"""
NCU = """while [ "$1" != --log-file ]; do shift; done
echo "==PROF== $*" >"$2"
printf '"ID","inst.sum"\\n"","inst"\\n"2","1,234"\\n' >>"$2"
shift 2
"$@"
"""


def test_what_would_run_on_a_gpu(tmp_path: Path) -> None:
    tools, copy = tmp_path / "tools", tmp_path / "copy"  # what the copy compiles is not found where others look
    for folder in ("benchmarks", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder)
    script(tools / "nvcc", NVCC)
    script(tools / "nvidia-smi", NVIDIA_SMI)
    script(tools / "ncu", NCU)
    python, out = script(tools / "python", INTERPRETER), tmp_path / "out"
    path = f"{tools}:{os.environ['PATH']}"
    done = run(copy / RUN.relative_to(ROOT), "--out", out, PYTHON=str(python), PATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1, done.stdout + done.stderr
    parts = [f"micro, {part}" for part in ("clocks", "clusters", "barriers", "mailboxes", "l2", "prototype")]
    profiles = [
        f"profile of {case}" for case in ("free-steps", "free-steps-of-a-grid", "nudged-steps", "free-steps-of-maps")
    ]
    wanted = {"micro": "ok"} | dict.fromkeys([*parts, "micro, exact sigmoid", "micro, layouts"], "failed")
    wanted |= dict.fromkeys(["build", *("tests of " + part for part in ("teams", "maps"))], "ok")
    wanted |= dict.fromkeys(["steps", "tests of the library", "calls", "bench"], "ok")
    wanted |= dict.fromkeys(profiles, "failed")  # and leave what the profiler saw until then
    found = outcomes(done.stdout)
    assert found == wanted and list(found) == list(wanted)
    files = {path.name for path in out.iterdir()}
    assert files == {"run.log", "build.log", "micro.csv", "tests.txt", "ncu.csv", "report.csv"}
    assert (out / "build.log").read_text() == "built for 9.0\n"
    for table, columns in (("micro.csv", "name,value,unit"), ("ncu.csv", "case,metric,value,unit")):
        facts, _, lines = (out / table).read_text().partition(columns + "\n")
        for fact in (
            "gpu: NVIDIA X100",
            "driver: 580.1",
            "torch: 1.2.3",
            "clocks at the start, of SM, at most, of memory: 19",
        ):
            assert f"# {fact}" in facts
    cases = [name.removeprefix("profile of ") for name in profiles]
    assert lines.splitlines() == [f"{case},inst.sum,1234,inst" for case in cases]
    log = (out / "run.log").read_text()
    assert "-- clocks at the end, of SM, at most, of memory: 1980 MHz" in log
    assert "\ncalled benchmarks/gpu/calls.py ep-1h-b20 " in log
    assert " -m ceprop_cuda bench --device cuda --rounds 3 " in log
    assert "-p poisoned" in (out / "tests.txt").read_text()


# --- Steps


def test_steps_that_go_wrong_do_not_stop_the_others(tmp_path: Path) -> None:
    program = """
step good 1 9 echo seen || echo not reached
step bad 1 9 bash -c 'echo why >&2; exit 7' || true
step slow 1 1 sleep 100 || true
step 'also good' 1 9 true
reserve=50
step late 20 30 true || true
reserve=0
step last 20 30 true
end_steps
"""
    done = shell(program, tmp_path)
    assert done.returncode == 1 and not done.stderr
    found = {"good": "ok", "bad": "failed", "slow": "timed", "also good": "ok", "late": "left", "last": "ok"}
    assert outcomes(done.stdout) == found
    log = (tmp_path / "run.log").read_text()
    assert outcomes(log) == found and "seen\n" in log
    assert "\nwhy\n" in done.stdout  # why a step failed is shown
    assert "with status 7" in log


def test_steps_that_all_go_well(tmp_path: Path) -> None:
    done = shell("begin_step beside 1 9 sleep 0.2\nstep one 1 9 true\nend_step beside\nend_steps", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert outcomes(done.stdout) == {"one": "ok", "beside": "ok"}


def test_a_step_gets_the_time_that_is_left(tmp_path: Path) -> None:
    done = shell("end_of_time=$((SECONDS + 2))\nstep greedy 1 100 sleep 100 || true\nend_steps", tmp_path)
    assert outcomes(done.stdout) == {"greedy": "timed"}
    assert "timed out after 2 s" in done.stdout


# --- The table


def test_the_table_of_predictions(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(
        "-- gpu: a GPU\n== micro: ok after 3 s\n== tests: failed after 2 s, with status 1\n"
    )
    (tmp_path / "micro.csv").write_text(
        "# gpu: a GPU\nname,value,unit\nclock,1980,MHz\nstep-b20-1x3,1.456,us\ncounted-barrier,0.6,us\nl2-lat"
    )
    columns = "case,engine,team,blocks,predicted_free_us,predicted_nudged_us,free_us,nudged_us,once_us,ms"
    (tmp_path / "cuda_steps.csv").write_text(
        f"# gpu: a GPU\n{columns}\nc-ep-2h-b20,teams,cluster,112,1.5,2.9,2.25,4.35,150,1.2\n"
        "p-conv-b20,teams,cluster,0,35,0,70,1,2,3\n"
    )
    (tmp_path / "cuda.csv").write_text("case,contender,status,ms\na,fused,ok,1.5\na,graph,n/a: why,\nb,fused,ok,2\n")
    done = run(sys.executable, GPU / "report.py", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    table = {(line[0], line[2]): line for line in cells(done.stdout, "name")}
    us_by_model = dict(by_machine_code())["nudged/c-ep-2h-b20/teams"]
    of_model, far = f"{us_by_model:.4g}", "-" if 1 / 1.5 <= 4.35 / us_by_model <= 1.5 else "x"
    wanted = {
        ("nudged/c-ep-2h-b20/teams", of_model): ["4.35", f"{4.35 / us_by_model:.4g}", far],
        ("clock", "1980"): ["1980", "1", "-"],
        ("step-b20-1x3", "0.91"): ["1.456", "1.6", "x"],
        ("step-b20-1x3", "1.16"): ["1.456", "1.255", "-"],
        ("counted-barrier", "1.1"): ["0.6", "0.5455", "x"],
        ("l2-latency", "0.35"): ["-", "-", "-"],
        ("free/c-ep-2h-b20/teams", "1.5"): ["2.25", "1.5", "-"],  # the planner's
        ("nudged/c-ep-2h-b20/teams", "2.9"): ["4.35", "1.5", "-"],
        ("free/p-conv-b20/teams", "35"): ["70", "2", "x"],
    }
    assert {key: table[key][3:6] for key in wanted} == wanted
    assert table["nudged/c-ep-2h-b20/teams", of_model][6] == "model of the machine code (benchmarks/sass)"
    assert table["nudged/c-ep-2h-b20/teams", "2.9"][6] == "planner"
    assert [key for key in table if "p-conv" in key[0]] == [("free/p-conv-b20/teams", "35")]
    assert cells(done.stdout, "case, ms") == [["a", "1.5", "n/a: why"], ["b", "2", ""]]
    assert cells(done.stdout, "step") == [["micro", "ok after 3 s"], ["tests", "failed after 2 s, with status 1"]]
    lines = (tmp_path / "report.csv").read_text().splitlines()
    assert lines[:3] == ["# gpu: a GPU", "# step micro: ok after 3 s", "# step tests: failed after 2 s, with status 1"]
    assert "step-b20-1x3,us,0.91,1.456,1.6,x," in "\n".join(lines)


def test_a_table_of_nothing_measured(tmp_path: Path) -> None:
    done = run(sys.executable, GPU / "report.py", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line[3] for line in cells(done.stdout, "name")} == {"-"}


def test_units_must_agree(tmp_path: Path) -> None:
    (tmp_path / "micro.csv").write_text("name,value,unit\nclock,1.98,GHz\n")
    done = run(sys.executable, GPU / "report.py", tmp_path)
    assert done.returncode == 1 and "clock is predicted in 'MHz' and measured in 'GHz'" in done.stderr


def test_predictions_are_of_what_is_measured() -> None:
    """Microbenchmarks that are predicted are among those that are made."""
    sources = "".join(path.read_text() for path in GPU.glob("*.cu*"))
    for line in csv.DictReader((GPU / "predictions.csv").open()):
        assert float(line["value"]) > 0 and line["source"]
        name = line["name"].split("-")[0]
        assert line["name"].startswith("free/") or f'"{name}' in sources


def test_counters_become_lines(tmp_path: Path) -> None:
    file = tmp_path / "raw.csv"
    file.write_text(
        '==PROF== Connected\n"ID","Kernel Name","inst.sum","ratio"\n"","","inst","%"\n'
        '"2","run_team(a, b)","1,234,567","12.5"\n'
    )
    done = run(sys.executable, GPU / "counters.py", "free-steps", file)
    assert done.stdout.splitlines() == [
        'free-steps,Kernel Name,"run_team(a, b)",',
        "free-steps,inst.sum,1234567,inst",
        "free-steps,ratio,12.5,%",
    ]
    file.write_text("==ERROR== no kernels\n")
    done = run(sys.executable, GPU / "counters.py", "free-steps", file)
    assert done.returncode == 1 and "free-steps: the profiler saw no kernel" in done.stderr
