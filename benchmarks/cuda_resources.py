"""What nvcc makes of the CUDA kernels: registers, spills and instructions, for every architecture, without a GPU.

    python benchmarks/cuda_resources.py [--architectures 80 90] [--jobs 2] [--if-changed] [--out benchmarks/results]

Compiles kernels.cu of the folders in csrc/cuda to binaries for every architecture; reads what ptxas and the
disassembler say. Prints a Markdown table of registers and, if all were compiled, writes cuda_resources.csv. With
--if-changed it takes what stands there if that was made from the same files by the same compiler.
Fails if a kernel

- spills registers or has a stack frame, or is missing;
- needs more registers than its blocks leave a thread;
- has many loads that ask which memory an address is in: so a function that is not inlined reads what it is passed;
- is compiled for an architecture that cannot run it, or is the stub that stands for such a one where it could run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
FILES = tuple(SOURCES / folder / "kernels.cu" for folder in ("teams", "maps", "aten"))
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FIRST_CLUSTERS = 90  # architecture
REGISTERS_OF_A_MULTIPROCESSOR, MOST_REGISTERS_OF_A_THREAD = 65536, 255
MOST_INSTRUCTIONS_OF_A_STUB = 16
MOST_GENERIC_LOADS = 0.03  # of the instructions
FRAME = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")  # in ptxas' order

TYPES = {"f": "float", "d": "double"}
MAPS = "Maps"  # of clusters that have them
AROUND_A_LIBRARY = {"pool_windows": "Pooling", "show_units": "Showing", "move_units": "Move"}
SAMPLES = {"float": (1, 3, 4), "double": (2,)}  # of a group
LEFT_TO_THE_GRID = [("float", 3, "InBlock"), ("float", 4, "InBlock"), ("float", 4, "InCluster")]  # moving weights
KERNELS = [  # as those files instantiate them; a grid takes groups of the most samples
    f"{number}, Team{count}, {place}{moves}"
    for number, counts in SAMPLES.items()
    for count, place in product(counts, ("InBlock", "InCluster", "InGrid"))
    if place != "InGrid" or count == max(counts)
    for moves in dict.fromkeys(("", f", Moves{place}", ", MovesInGrid"))
    if (number, count, place) not in LEFT_TO_THE_GRID or moves in ("", ", MovesInGrid")
] + [f"{number}, {name}" for number in SAMPLES for name in (MAPS, *AROUND_A_LIBRARY.values())]


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture."""

    architecture: int  # 90 for sm_90
    kernel: str
    registers: int  # of a thread
    static_shared_bytes: int
    stack_bytes: int  # of it and of the functions that it calls
    spill_store_bytes: int
    spill_load_bytes: int
    instructions: int  # without those that fill up its memory
    generic_loads: int  # from an address in any memory
    traps: int

    @property
    def is_stub(self) -> bool:
        """It does nothing but stop."""
        return self.traps > 0 and self.instructions <= MOST_INSTRUCTIONS_OF_A_STUB


@dataclass(frozen=True)
class Disassembled:
    """What is counted in a kernel's instructions."""

    instructions: int
    generic_loads: int
    traps: int


# --- Reading what the tools print


def readable(symbol: str) -> str:
    """A kernel's symbol as "float, Pooling" or "float, Team4, InCluster, MovesInGrid", if weights move; others as they
    are."""
    if of_team := re.search(
        r"run_teamI([fd])Li(\d)ENS\d*_\d+(In[A-Z][a-z]+)E(v|S\d*_|NS\d*_\d+(In[A-Z][a-z]+)E)E", symbol
    ):
        moves = "" if of_team[4] == "v" else f", Moves{of_team[5] or of_team[3]}"  # the same name is not said twice
        return f"{TYPES[of_team[1]]}, Team{of_team[2]}, {of_team[3]}{moves}"
    if around := re.search(rf"4cuda\d+({'|'.join(AROUND_A_LIBRARY)})I([fd])E", symbol):
        return f"{TYPES[around[2]]}, {AROUND_A_LIBRARY[around[1]]}"
    if of_maps := re.search(r"relax_mapsI([fd])E", symbol):
        return f"{TYPES[of_maps[1]]}, {MAPS}"
    return symbol


def parse_report(text: str) -> dict[str, dict[str, int]]:
    """ptxas' report: by kernel its registers and bytes, under the names of :class:`Resources`."""
    report: dict[str, dict[str, int]] = {}
    numbers: dict[str, int] = {}
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            numbers = dict.fromkeys(FRAME, 0)
            report[readable(entry[1])] = numbers
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # A line each for the kernel and for the functions that it calls.
            for name, value in zip(FRAME, frame.groups(), strict=True):
                numbers[name] = numbers.get(name, 0) + int(value)
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            numbers |= {"registers": int(used[1]), "static_shared_bytes": int(shared[1]) if shared else 0}
    return report


def parse_disassembly(text: str) -> dict[str, Disassembled]:
    """``cuobjdump -sass``: by kernel what is counted of its instructions."""
    found = {}
    for part in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
        symbol, _, body = part.partition("\n")
        names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", body, re.MULTILINE)
        found[readable(symbol.strip())] = Disassembled(
            instructions=sum(name != "NOP" for name in names),
            generic_loads=names.count("LD"),
            traps=len(re.findall(r"\bBPT\.TRAP\b", body)),
        )
    return found


def resources(architecture: int, report: str, disassembly: str) -> list[Resources]:
    """A line for each kernel that both speak of."""
    instructions = parse_disassembly(disassembly)
    return [
        Resources(architecture, kernel, **numbers, **asdict(instructions[kernel]))
        for kernel, numbers in parse_report(report).items()
        if "registers" in numbers and kernel in instructions
    ]


# --- What must hold


def exists_on(kernel: str, architecture: int) -> bool:
    """Whether the architecture has what the kernel is made of."""
    return architecture >= FIRST_CLUSTERS or not ("InCluster" in kernel or kernel.endswith(MAPS))


def faults(rows: Sequence[Resources], architectures: Sequence[int], threads: Mapping[str, int]) -> list[str]:
    """What is wrong with the kernels, in words; ``threads`` of a block as of :func:`block_threads`. A multiprocessor
    must hold one block."""
    found = []
    there = {(row.architecture, row.kernel) for row in rows}
    for architecture, kernel in product(architectures, KERNELS):
        if (architecture, kernel) not in there:
            found.append(f"sm_{architecture}, {kernel}: not found in what the compiler reports")
    for row in rows:
        of_block = threads[row.kernel if row.kernel.endswith(MAPS) else row.kernel.partition(",")[0]]
        most = min(MOST_REGISTERS_OF_A_THREAD, REGISTERS_OF_A_MULTIPROCESSOR // of_block)
        who = f"sm_{row.architecture}, {row.kernel}"
        if row.spill_store_bytes or row.spill_load_bytes:
            found.append(
                f"{who}: spills registers, {row.spill_store_bytes} bytes stored and {row.spill_load_bytes} loaded"
            )
        if row.stack_bytes:
            found.append(f"{who}: a stack frame of {row.stack_bytes} bytes")
        if row.registers > most:
            found.append(f"{who}: {row.registers} registers, where blocks of {of_block} threads leave {most}")
        if row.generic_loads > MOST_GENERIC_LOADS * row.instructions:
            found.append(f"{who}: {row.generic_loads} of {row.instructions} instructions are loads from any memory")
        if not exists_on(row.kernel, row.architecture):
            if not row.is_stub:
                found.append(f"{who}: {row.instructions} instructions, where a stub must trap")
        elif row.is_stub:
            found.append(f"{who}: a stub that traps, where the architecture could run it")
    return found


def block_threads() -> dict[str, int]:
    """The most threads of a block, as launch bounds have them: of teams by a kernel's numbers, of maps by its name."""
    found = {}
    for folder, function, kind in (("teams", "most_warps", ""), ("maps", "warps_of", f", {MAPS}")):
        layout = SOURCES / folder / "layout.h"
        pattern = rf"{function}\(int number_bytes\) {{ return number_bytes == 4 \? (\d+) : (\d+); }}"
        warps = re.search(pattern, layout.read_text())
        if warps is None:
            sys.exit(f"no '{function}(int number_bytes) {{ return number_bytes == 4 ? ... : ...; }}' in {layout}")
        found |= {number + kind: 32 * int(count) for number, count in zip(SAMPLES, warps.groups(), strict=True)}
    return found


def table(rows: Sequence[Resources]) -> str:
    """Registers in Markdown, a line per kernel and a column per architecture; a dash for stubs."""
    architectures = sorted({row.architecture for row in rows})
    registers = {(row.kernel, row.architecture): "-" if row.is_stub else str(row.registers) for row in rows}
    lines = [["kernel", *(f"sm_{architecture}" for architecture in architectures)]]
    lines.append(["---"] * len(lines[0]))
    for kernel in dict.fromkeys(row.kernel for row in rows):
        lines.append([kernel, *(registers.get((kernel, architecture), "") for architecture in architectures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- Running the tools


def find_nvcc(environment: Mapping[str, str]) -> Path | None:
    """The compiler that a build would take, without asking whether it fits torch: see ``setup.py``."""
    homes = [Path(environment[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    on_path = shutil.which("nvcc", path=environment.get("PATH", ""))
    candidates = [home / "bin" / "nvcc" for home in homes] + ([Path(on_path)] if on_path else [])
    return next((nvcc for nvcc in (*candidates, Path("/usr/local/cuda/bin/nvcc")) if nvcc.exists()), None)


def find_tool(nvcc: Path, name: str) -> Path | None:
    """A tool that reads binaries, of the toolkit or of the triton that comes with torch."""
    candidates = [nvcc.resolve().parent / name]
    if on_path := shutil.which(name):
        candidates.append(Path(on_path))
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        candidates.append(Path(folder) / "backends" / "nvidia" / "bin" / name)
    return next((tool for tool in candidates if tool.exists()), None)


def find_disassembler(nvcc: Path) -> Path | None:
    return find_tool(nvcc, "cuobjdump")


def compiler() -> Path | None:
    """nvcc; None, which is said, if there is none and CEPROP_CUDA=0 asks for no kernels. Else exits without one."""
    nvcc = find_nvcc(os.environ)
    if nvcc is None and os.environ.get("CEPROP_CUDA") == "0":
        print("no nvcc: the CUDA kernels are not compiled, as CEPROP_CUDA=0 asks")
    elif nvcc is None:
        sys.exit("no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda: install CUDA's compiler, or set CEPROP_CUDA=0")
    return nvcc


def version_of(nvcc: Path) -> str:
    return re.findall(r"release \d+\.\d+, V([\d.]+)", run(nvcc, "--version"))[0]


def run(*command: object) -> str:
    """What a command prints; exits with that if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compiled(nvcc: Path, disassembler: Path, architecture: int) -> tuple[list[Resources], float]:
    """The kernels of one architecture, and how many seconds that took."""
    began = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.cubin"
        flags = ("-std=c++20", "-O3", "-cubin", f"-arch=sm_{architecture}", "--resource-usage")
        for source in FILES:
            report = run(nvcc, *flags, "-o", binary, source)
            rows += resources(architecture, report, run(disassembler, "-sass", binary))
    return rows, time.perf_counter() - began


def compile_all(nvcc: Path, disassembler: Path, architectures: Sequence[int], jobs: int) -> list[Resources]:
    """The kernels of all these architectures, oldest first; ``jobs`` of them are compiled at once."""
    rows: list[Resources] = []
    began = time.perf_counter()
    newest_first = sorted(architectures, reverse=True)  # which have most kernels: none of these is left at the end
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda architecture: compiled(nvcc, disassembler, architecture), newest_first)
        for architecture, (of_one, seconds) in zip(newest_first, results, strict=True):
            print(f"sm_{architecture}: {seconds:.0f} s", flush=True)
            rows = of_one + rows
    print(f"all: {time.perf_counter() - began:.0f} s", flush=True)
    return rows


# --- The table of before


def fingerprint(scripts: Sequence[Path] = (), sources: Path | None = None) -> str:
    """Of all files that a result depends on: the kernels, what they include, this script, and others that make it."""
    sources = sources or SOURCES
    of_aten = [sources.parent / "aten" / name for name in ("pointwise.h", "whole_phase.h")]
    shared = [*(sources.parent / "model").glob("*.h"), *of_aten]
    included = [*shared, *(path for path in sources.rglob("*") if path.suffix != ".cpp")]
    digest = hashlib.sha256()
    for path in (*sorted(path for path in included if path.is_file()), Path(__file__), *scripts):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def what_made(nvcc_version: str, scripts: Sequence[Path] = (), sources: Path | None = None) -> dict[str, str]:
    """What must be the same for a table to be: its lines above the columns."""
    return {"nvcc": nvcc_version, "files": fingerprint(scripts, sources)}


def read_table(path: Path, made_by: Mapping[str, str], of: type = Resources) -> list[Any] | None:
    """The rows of this dataclass that stand there, if they were made by the same; None if not."""
    from ceprop_cuda.output.tables import read_rows

    held = path.read_text().splitlines() if path.exists() else []
    is_same = {f"# {key}: {value}" for key, value in made_by.items()} <= set(held)
    return read_rows(path, of) if is_same else None


def write_table(path: Path, rows: Sequence[Any], made_by: Mapping[str, str]) -> None:
    from ceprop_cuda.environment import environment
    from ceprop_cuda.output.tables import write_csv

    facts = environment()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows, {"date": facts["date"], "commit": facts["commit"], **made_by})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES), metavar="90")
    parser.add_argument("--jobs", type=int, default=2, help="architectures compiled at once")
    parser.add_argument("--if-changed", action="store_true", help="compile nothing if the table in --out still holds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    is_complete = sorted(args.architectures) == list(ARCHITECTURES)
    if args.if_changed and not is_complete:
        parser.error("--if-changed takes the table of all architectures: leave out --architectures")
    nvcc = compiler()
    if nvcc is None:
        return
    disassembler = find_disassembler(nvcc)
    if disassembler is None:
        sys.exit("no cuobjdump beside nvcc, on PATH or in the triton package: kernels cannot be disassembled")

    version = version_of(nvcc)
    print(f"nvcc {version}", flush=True)
    path, made_by = args.out / "cuda_resources.csv", what_made(version)
    held = read_table(path, made_by) if args.if_changed else None
    rows = held or compile_all(nvcc, disassembler, args.architectures, args.jobs)
    print(f"\n{table(rows)}\n")
    found = faults(rows, args.architectures, block_threads())
    if found:
        sys.exit("\n".join(found))
    print("no spills, no stack frames; what an architecture cannot run is a stub that traps")
    if held:
        print(f"as in {path}, which was made from the same files by the same compiler: nothing was compiled")
    elif is_complete:
        write_table(path, rows, made_by)
        print(f"{path} is written")


if __name__ == "__main__":
    main()
