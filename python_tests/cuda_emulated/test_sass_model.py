"""The model of benchmarks/sass: machine code written by hand is read, followed and timed. No compiler is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import account
import compiled
import disassembly
import flow
import kinds
import machine
import parts
import pytest
import sources
import step_loops
import walk
from disassembly import NONE, Frame
from sass_text import KERNEL, LOOPS, function, line, made_at, read

# --- Reading


def test_instructions_are_read() -> None:
    first, second = read(
        made_at(("/s/cuda/../tiles.h", 59), ("/s/products.h", 76), ("/s/run.h", 12))
        + line(0x13690, "LD.E.128 R92, desc[UR8][R92.64]", stall=3, sets=2, waits=0b100010)
        + line(0x136A0, "@!UP0 STS [R1+0x10], R2", stall=15, frees=5)
    )
    assert (first.address, first.opcode, first.name, first.predicate) == (0x13690, "LD.E.128", "LD", "")
    assert first.operands == "R92, desc[UR8][R92.64]"
    assert first.control == (3, 2, NONE, 0b100010)
    assert [board for board in range(6) if first.control.needs(board)] == [1, 5]
    assert first.chain == (Frame("/s/tiles.h", 59), Frame("/s/products.h", 76), Frame("/s/run.h", 12))
    assert (second.predicate, second.control) == ("@!UP0", (15, NONE, 5, 0))
    assert second.chain is first.chain  # as long as no other lines are named


def test_branches_are_read() -> None:
    code = read(LOOPS)
    targets = {i.address: i.targets for i in code if i.targets}
    assert targets == {0x20: (0x50,), 0x60: (0x20,), 0x70: (0x10,), 0x80: (0x10,)}
    assert [i.address for i in code if i.is_conditional] == [0x20, 0x40, 0x60, 0x70]
    table = '(*"BRANCH_TARGETS .L_x_7,.L_x_8"*)'
    jump, call, *_ = read(
        line(0, "BRX R20 -0xc30", table=table)
        + line(0x10, "CALL.REL.NOINC `($__internal_3_$__cuda_sm20_div_s64)")
        + f".L_x_7:\n{line(0x20, 'BSSY B0, `(.L_x_8)')}.L_x_8:\n{line(0x30, 'EXIT')}"
    )
    assert (jump.targets, jump.operands) == ((0x20, 0x30), "R20 -0xc30")
    assert (call.targets, call.callee) == ((), "$__internal_3_$__cuda_sm20_div_s64")
    assert read(line(0, "BSSY B0, `(.L_x_8)") + f".L_x_8:\n{line(0x10, 'EXIT')}")[0].targets == ()


def test_functions_are_told_apart() -> None:
    text = (function(line(0, "EXIT")) + function(line(0, "NOP") + line(0x10, "EXIT"), "other")).splitlines()
    assert {name: len(code) for name, code in disassembly.read(text).items()} == {KERNEL: 1, "other": 2}
    assert list(disassembly.read(text, lambda symbol: symbol == "other")) == ["other"]


def test_kinds_of_instructions() -> None:
    counts = kinds.counted(read(LOOPS))
    assert counts["multiply_adds"] == 1
    assert (counts["shared"], counts["control"], counts["integers"], counts["doubles"]) == (2, 5, 2, 0)
    assert [kinds.kind_of(o) for o in ("LDGSTS.E.128", "LDGDEPBAR", "I2F.RP")] == [
        "other_memory",
        "control",
        "conversions",
    ]


# --- Loops and ways through them


def addresses(graph: flow.Graph, loop: flow.Loop) -> list[int]:
    return [i.address for i in graph.instructions_of(loop)]


def test_loops_are_found() -> None:
    graph = flow.graph_of(read(LOOPS))
    assert [addresses(graph, loop) for loop in graph.loops] == [
        [0x20, 0x30, 0x40, 0x50, 0x60],
        [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70],
    ]
    assert graph.innermost_loops() == graph.loops[:1]
    assert graph.smallest_loop(lambda i: i.name == "LDS") is graph.loops[0]
    assert graph.smallest_loop(lambda i: i.address in (0x10, 0x50)) is graph.loops[1]
    assert graph.smallest_loop(lambda i: i.address in (0x10, 0x50), share=0.5) is graph.loops[0]
    assert graph.smallest_loop(lambda i: i.address in (0x00, 0x50)) is None
    assert graph.smallest_loop(lambda i: i.name == "HMMA") is None
    assert graph.fullest_loop(lambda i: i.name == "LDS", 0.9) is graph.loops[0]
    assert graph.fullest_loop(lambda i: i.address in (0x00, 0x10, 0x50), 0.6) is graph.loops[1]  # two of three
    assert graph.fullest_loop(lambda i: i.address in (0x00, 0x10, 0x50), 0.7) is None
    assert graph.fullest_loop(lambda i: i.name == "HMMA", 0.9) is None


def test_a_walk_takes_the_shortest_way_that_does_what_it_must() -> None:
    graph = flow.graph_of(read(LOOPS))
    inner, outer = graph.loops
    load, multiply = parts.made_by(sources.Lines("/s/rare.h", frozenset([7])), "LDS"), lambda i: i.name == "FFMA"

    def way(loop: flow.Loop, *events: walk.Event, unwanted: walk.Test = walk.never) -> list[tuple[int, bool]]:
        return [(i.address, taken) for i, taken in walk.around(graph, loop, events, unwanted)]

    short = [(0x20, True), (0x50, False), (0x60, True)]
    long = [(0x20, False), (0x30, False), (0x40, False), (0x50, False), (0x60, True)]
    assert way(inner) == short
    # The second load has a predicate: it may be one of those counted, or not.
    assert way(inner, walk.Event("loads", load, 1)) == way(inner, walk.Event("loads", load, 2)) == long
    assert way(inner, walk.Event("loads", load, at_least=True)) == long
    end = [(0x50, False), (0x60, False), (0x70, True)]
    assert way(outer, walk.Event("FFMA", multiply, 2)) == [(0x10, False), *short, (0x20, True), *end]
    with pytest.raises(walk.NoWay, match="loads 3 times"):
        way(inner, walk.Event("loads", load, 3))


def test_a_walk_goes_round_what_is_not_wanted() -> None:
    code = read(
        ".L_x_1:\n"
        + line(0x00, "@P0 BRA `(.L_x_2)")
        + made_at(("/s/rare.h", 7))
        + line(0x10, "FADD R1, R1, R1")
        + line(0x20, "BRA `(.L_x_3)")
        + made_at(("/s/usual.h", 3))
        + f".L_x_2:\n{''.join(line(0x30 + 16 * n, 'FMUL R1, R1, R1') for n in range(5))}"
        + f".L_x_3:\n{line(0x80, '@P1 BRA `(.L_x_1)')}{line(0x90, 'EXIT')}"
    )
    graph = flow.graph_of(code)
    rare = parts.any_of(sources.Lines("/s/rare.h", frozenset([7])))
    assert "FADD" in [i.name for i, _ in walk.around(graph, graph.loops[0])]
    avoided = walk.around(graph, graph.loops[0], (), rare)
    assert [i.name for i, _ in avoided] == ["BRA", *["FMUL"] * 5, "BRA"]
    assert walk.unwanted_in(avoided, rare) == 0


# --- Lines of sources

SOURCE = """// void run() { a comment }
template <class T>
struct Tile {
  void add(const T* from) {
    const char brace = '{';
    for (int k = 0; k < 4; ++k) {
      use(from[k]);
    }
  }
};
struct Other {
  int add(int a, int b) const { return a + b; }  // add(1) {
};
void run() {
  other.add(1, 2);
  for (int stage = 0; stage < 3; ++stage) {
    for (bool ends = false; !ends;) {
      ends = may_stop(1);
    }
  }
}
"""


def test_functions_and_loops_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "source.h"
    path.write_text(SOURCE)

    def numbers(lines: sources.Lines) -> tuple[int, int]:
        return min(lines.numbers), max(lines.numbers)

    assert numbers(sources.function(path, "add", "Tile")) == (4, 9)
    assert numbers(sources.function(path, "add", "Other")) == (12, 12)
    run = sources.function(path, "run")
    assert numbers(run) == (14, 21)
    assert numbers(sources.loop_around(path, run, "may_stop")) == (17, 19)
    assert run.matching(r"for \(").numbers == {16, 17}
    for missing in (("add", "Nobody"), ("nothing", "Tile"), ("may_stop", "")):
        with pytest.raises(ValueError, match=r"no (class|function)"):
            sources.function(path, *missing)
    with pytest.raises(ValueError, match="no loop around"):
        sources.loop_around(path, run, "add")


def test_the_kernels_have_what_the_model_looks_for() -> None:
    kernel = parts.Kernel("none", read(LOOPS), compiled.CSRC)
    for place in [
        ("cuda/tiles.cuh", "add", "FmaTile"),
        ("cuda/tiles.cuh", "output", "FmaTile"),
        ("cuda/products.cuh", "stage_rows", "Products"),
        ("cuda/products.cuh", "row", "Products"),
        *(("cuda/states.cuh", name, of) for name in ("state", "seen") for of in ("GridStates", "ClusterStates")),
        *(("cuda/relaxation.cuh", name, "Relaxation") for name in ("take_in", "move")),
        ("model/unit_math.h", "next_state"),
        *(("model/activations.h", name) for name in ("rho", "rho_prime")),
        ("model/elementary.h", "steep_sigmoid"),
        ("cuda/teams/lanes.cuh", "multiply"),
        *(("cuda/teams/relaxation.cuh", name, "Relaxation") for name in ("error", "show")),
    ]:
        assert kernel.lines(*place).numbers, place
    for file, call in step_loops.STEP_LOOPS.values():
        assert len(sources.step_loop(compiled.CSRC / file, call).numbers) > (10 if call == "may_stop" else 1)


def test_multiply_loops_are_found_by_their_function() -> None:
    add = sources.function(compiled.CSRC / "cuda/tiles.cuh", "add", "FmaTile")

    def loop(first: int, neighbours: int) -> str:
        """Of so many neighbours times 16 outputs."""
        body = [*["FFMA R0, R1, R2, R0"] * 16 * neighbours, f"@P0 BRA `(.L_x_{first})"]
        return f".L_x_{first}:\n" + "".join(line(first + 16 * n, text) for n, text in enumerate(body))

    other = made_at(("/s/other.h", 1)) + loop(0x2000, 8)
    body = made_at((add.file, max(add.numbers))) + loop(0, 4) + loop(0x1000, 1) + other + line(0x4000, "EXIT")
    found = parts.multiplies(parts.Kernel("by hand", read(body), compiled.CSRC))
    assert [(part.items, len(part.steps)) for part in found] == [(4, 65), (1, 17)]
    assert found[1].clocks(1, turns=10) * 10 == pytest.approx(10 * 17 + 9 * machine.TAKEN_BRANCH)
    with pytest.raises(walk.NoWay, match="no loop around FmaTile::add"):
        parts.depth_loop(parts.Kernel("by hand", read(body), compiled.CSRC))


# --- The machine


def code(*texts: tuple[str, dict[str, Any]] | str) -> list[machine.Step]:
    """A trace without branches."""
    given = [(text, {}) if isinstance(text, str) else text for text in texts]
    return [(i, False) for i in read("".join(line(16 * n, text, **how) for n, (text, how) in enumerate(given)))]


def clocks(*traces: list[machine.Step]) -> int:
    return machine.simulate(traces).clocks


def test_a_chain_waits_for_its_stall_counts() -> None:
    chain = code(*[("FFMA R0, R0, R1, R0", {"stall": 4})] * 10)
    assert clocks(chain) == 4 * 9 + 1
    assert clocks(*[chain] * 8) == 4 * 9 + 2  # two warps of a scheduler: the other's issues lie between


def test_a_scoreboard_is_waited_for() -> None:
    load = ("LDS R0, [R1]", {"sets": 3})
    free = clocks(code(load, "FFMA R2, R2, R2, R2"))
    held = clocks(code(load, ("FFMA R2, R0, R2, R2", {"waits": 0b1000})))
    assert (free, held) == (2, 1 + machine.timing_of("LDS").latency)
    assert clocks(code(load, ("FFMA R2, R0, R2, R2", {"waits": 0b0100}))) == free  # another's
    assert clocks(code(("LDS.128 R0, [R1]", {"sets": 3}), load, ("NOP", {"waits": 0b1000}))) > held


@pytest.mark.parametrize(
    ("text", "each"), [("FFMA R0, R1, R2, R0", 1), ("IADD3 R0, R1, R2, RZ", 2), ("MUFU.RCP R0, R1", 8)]
)
def test_pipes_have_rates(text: str, each: int) -> None:
    many = 64
    assert clocks(*[code(*[text] * many)] * 8) == pytest.approx(2 * many * each, abs=each + 1)


def test_shared_memory_serves_all_schedulers() -> None:
    wide = code(*["LDS.128 R0, [R1]"] * 100)
    assert clocks(*[wide] * 8) == pytest.approx(8 * 100 * 4, rel=0.03)


def test_warps_wait_at_a_barrier() -> None:
    slow, fast = code(*["MUFU.RCP R0, R1"] * 20, "BAR.SYNC 0x0", "NOP"), code("BAR.SYNC 0x0", "NOP")
    assert clocks(slow, fast) == clocks(slow) == 19 * 8 + 1 + machine.BARRIER + 1
    assert clocks(fast) == machine.BARRIER + 1


def test_taken_branches_and_generic_loads_cost_what_is_assumed() -> None:
    branch, after = read(line(0, "BRA `(.L_x_1)", stall=5) + f".L_x_1:\n{line(16, 'EXIT')}")
    assert clocks([(branch, False), (after, False)]) == 5 + 1
    assert clocks([(branch, True), (after, False)]) == 5 + machine.TAKEN_BRANCH + 1
    load = code(("LD.E R0, [R2.64]", {"sets": 0}), ("NOP", {"waits": 1}))
    assert machine.simulate([load]).clocks == 41
    assert machine.simulate([load], generic_load=290).clocks == 291
    assert machine.simulate([load]).issued == Counter(LD=1, NOP=1)
    with pytest.raises(RuntimeError, match="after 10 clocks"):
        machine.simulate([load], limit=10)


# --- The account of a step


class Counting(account.Account):
    """Counts instead of clocks: neighbours of a slice, and rows of packs."""

    def __init__(self, brings_whole_parts: bool) -> None:
        self._brings_whole_parts = brings_whole_parts

    def multiply_clocks(self, neighbours: int) -> float:
        return neighbours

    def staging_clocks(self, rows: int, samples: int) -> float:
        return rows

    def epilogue_clocks(self, slices: int, warps: int) -> float:
        return 1000 * slices + warps


@pytest.mark.parametrize(
    ("batch", "columns", "pass_", "expected"),
    [(20, 24, 24, (53, 10003)), (64, 64, 64, (131, 4008)), (256, 256, 64, (524, 16032))],
)
def test_a_step_is_that_of_the_busiest_block(batch: int, columns: int, pass_: int, expected: tuple[int, int]) -> None:
    case = account.Case("ep-2h", (784, 512, 512, 10), batch)
    plan = {"samples_at_once": pass_, "depth_at_once": 128, "columns": columns, "blocks": 3, "exchange": "grid"}
    plan["layers_of_tiles"] = [[0], [1], [2]]
    row = Counting(brings_whole_parts=False).step(case, plan, {"free_us": "14.25", "exchange": "grid"})
    passes = columns // pass_
    multiply, epilogue = (us * account.CLOCKS_OF_A_MICROSECOND for us in (row.multiply_us, row.epilogue_us))
    assert (round(multiply), round(epilogue)) == expected
    assert round(row.staging_us * account.CLOCKS_OF_A_MICROSECOND) == 522 * passes
    assert row.simulated_us == pytest.approx(row.multiply_us + row.staging_us + row.epilogue_us + 2.6)
    assert (row.measured_us, row.measured_exchange) == (14.25, "grid")
    whole = Counting(brings_whole_parts=True).step(case, plan | {"exchange": "cluster"}, {})
    assert round(whole.staging_us * account.CLOCKS_OF_A_MICROSECOND) == 640 * passes
    assert (whole.barrier_us, whole.measured_us) == (None, None)
