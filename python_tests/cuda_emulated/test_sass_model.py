"""The model of benchmarks/sass: machine code written by hand is read, followed and timed. No compiler is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import compiled
import disassembly
import flow
import kernel
import machine
import maps
import pytest
import sources
import teams
import walk
from disassembly import NONE, Frame
from sass_text import KERNEL, LOOPS, function, line, made_at, read

from ceprop_cuda import _C

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


# --- Loops and ways through them


def addresses(graph: flow.Graph, loop: flow.Loop) -> list[int]:
    return [i.address for i in graph.instructions_of(loop)]


def test_loops_are_found() -> None:
    graph = flow.graph_of(read(LOOPS))
    assert [addresses(graph, loop) for loop in graph.loops] == [
        [0x20, 0x30, 0x40, 0x50, 0x60],
        [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70],
    ]
    inner, outer = graph.loops

    def loop_of(share: float, *wanted: int) -> flow.Loop | None:
        return graph.loop_of(lambda i: i.address in wanted, share, share)

    assert loop_of(0.6, 0x20, 0x30, 0x40, 0x50, 0x60) is outer  # five of its seven are wanted, and it has all five
    assert loop_of(0.8, 0x20, 0x30, 0x40, 0x50, 0x60) is inner  # of whose own all are wanted
    assert loop_of(0.8, 0x20, 0x30, 0x40, 0x50, 0x00) is inner  # it has four of five, and they are four of its five
    assert loop_of(0.9, 0x20, 0x30, 0x40, 0x50, 0x00) is None
    assert graph.loop_of(lambda i: i.name == "HMMA", 0.1, 0.1) is None


def test_what_no_way_leads_to_does_not_count() -> None:
    """As of a warp whose threads have parted: it goes on behind the end."""
    parted = "".join(line(0xA0 + 16 * n, "SHFL.IDX R1, R1, R2, R3") for n in range(5))
    graph = flow.graph_of(read(LOOPS + parted + line(0xF0, "BRA `(.L_x_2)")))
    assert graph.loop_of(lambda i: i.name in ("LDS", "FFMA", "BRA", "IADD3", "SHFL"), 0.8, 0.8) is graph.loops[1]


def test_a_walk_takes_the_shortest_way_that_does_what_it_must() -> None:
    graph = flow.graph_of(read(LOOPS))
    inner, outer = graph.loops
    load = kernel.made_by(sources.Lines("/s/rare.h", frozenset([7])), names=("LDS",))

    def way(loop: flow.Loop, *events: walk.Event, unwanted: walk.Test = walk.never) -> list[tuple[int, bool]]:
        return [(i.address, taken) for i, taken in walk.around(graph, loop, events, unwanted)]

    short = [(0x20, True), (0x50, False), (0x60, True)]
    long = [(0x20, False), (0x30, False), (0x40, False), (0x50, False), (0x60, True)]
    assert way(inner) == short
    # The second load has a predicate: it may be one of those counted, or not.
    assert way(inner, walk.Event("loads", load, 1)) == way(inner, walk.Event("loads", load, 2)) == long
    assert way(inner, walk.Event("loads", load, at_least=True)) == long
    end = [(0x50, False), (0x60, False), (0x70, True)]
    assert way(outer, walk.Event("FFMA", lambda i: i.name == "FFMA", 2)) == [(0x10, False), *short, (0x20, True), *end]
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
    rare = kernel.any_of(sources.Lines("/s/rare.h", frozenset([7])))
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
    here = kernel.Kernel("none", read(LOOPS), compiled.CSRC)
    for *place, lines in [
        ("model/unit_math.h", "next_state", "moved|clips"),
        ("model/activations.h", "rho", ""),
        ("model/activations.h", "rho_prime", ""),
        ("model/elementary.h", "steep_sigmoid", ""),
        (teams.LANES, "multiply", r"weight\.v\[i\] \* state"),
        (teams.LANES, "multiply_own", ""),
        (teams.UPDATE, "note_shown", "before"),
        (teams.UPDATE, "add_of_learning", "Part", "<Near, true, false>"),
        (teams.UPDATE, "add_of_learning", "Part", "<Near, false, true>"),
        (teams.UPDATE, "add_of_learning", "Part", "<Near, false, false>"),
        (teams.UPDATE, "units_at", "auto low"),
        (teams.UPDATE, "units_at", r"return \{jobs"),
        (teams.UPDATE, "move", "Part", "blend"),
        (teams.UPDATE, "move_constant", r"row \+ b \* bytes"),
        (teams.UPDATE, "move_constant", r"return ones\(\)"),
        ("cuda/teams/run.cuh", "run_rounds", ""),
        (kernel.RELAXATION, "move_weights", "__syncthreads"),
        (maps.UP, "way_up", ""),
        (maps.DOWN, "way_down", r"memory\.put\(place"),
        (maps.DOWN, "gather_regions", ""),
        (maps.DOWN, "sum_of_regions", ""),
        (maps.PHASE, "run", "Phase", "compute"),
        (maps.PHASE, "pool", r"number \+="),
        (maps.PHASE, "pool", r"memory_.put\(joint.spread"),
        (maps.PHASE, "multiply", r"i \* bytes"),
        (maps.PHASE, "multiply", "below.downs"),
        (maps.PHASE, "from_above", r"sum \+="),
        (maps.PHASE, "move", r"peer.push\(to, box, shown\)"),
    ]:
        assert here.lines(*place).matching(lines).numbers, (place, lines)
    for name in ("error", "next_of", "show"):
        assert here.lines(kernel.RELAXATION, name, "Relaxation").numbers
    assert here.lines("cuda/teams/team.cuh", "meet", "Grid") != here.lines("cuda/teams/team.cuh", "meet", "OneBlock")
    run = here.lines(kernel.RELAXATION, "run")
    assert len(sources.loop_around(compiled.CSRC / kernel.RELAXATION, run, "step").numbers) > 1


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


def test_what_is_brought_to_shared_memory_is_waited_for() -> None:
    bring, ends = "LDGSTS.E.BYPASS.128 [R1], [R2.64]", ("LDGDEPBAR", {"sets": 0})
    there = machine.timing_of("LDGSTS.E.128").latency
    assert clocks(code(bring, ends, "DEPBAR.LE SB0, 0x0")) == there + 1
    assert clocks(code(bring, ends, "DEPBAR.LE SB0, 0x1")) < 10  # one may be under way
    assert clocks(code(bring, ends, bring, ends, "DEPBAR.LE SB0, 0x1")) == there + 1  # the first is there
    assert clocks(code(bring, ends, bring, ends, "DEPBAR.LE SB0, 0x0")) > there + 1


def test_taken_branches_and_loads_cost_what_is_assumed() -> None:
    branch, after = read(line(0, "BRA `(.L_x_1)", stall=5) + f".L_x_1:\n{line(16, 'EXIT')}")
    assert clocks([(branch, False), (after, False)]) == 5 + 1
    assert clocks([(branch, True), (after, False)]) == 5 + machine.TAKEN_BRANCH + 1
    load = code(("LDG.E R0, [R2.64]", {"sets": 0}), ("NOP", {"waits": 1}))
    assert clocks(load) == machine.FROM_L2 + 1
    assert machine.simulate([load]).issued == Counter(LDG=1, NOP=1)
    with pytest.raises(RuntimeError, match="after 10 clocks"):
        machine.simulate([load], limit=10)


# --- A step of teams


def plan(prefix: str = "", **settings: Any) -> tuple[teams.Plan, dict[str, Any]]:
    facts = _C.launch_plan(**teams.H100, asynchronous=False, number_bytes=4, tolerance=False, **settings)
    return teams.Plan.of(facts, prefix), facts


@pytest.mark.parametrize("sizes", [(784, 512, 10), (784, 512, 512, 10), (40, 100, 97, 33, 225, 5)])
def test_what_octets_read_is_what_the_planner_says(sizes: tuple[int, ...]) -> None:
    _, facts = plan(widths=sizes, batch=20, continual=False)
    reads = teams.Reads.of_layers(sizes)
    added = [(below.chunks + above.chunks, below.pairs + above.pairs) for below, above in reads]
    assert added == [tuple(sources) for sources in facts["sources_of_layers"]]


@pytest.mark.parametrize(("prefix", "batch"), [("", 20), ("moving_", 20), ("", 64), ("", 300)])
def test_warps_share_out_a_block(prefix: str, batch: int) -> None:
    found, _ = plan(prefix, widths=(784, 512, 512, 10), batch=batch, continual=prefix != "")
    for layers in found.layers_of_octets:
        work = Counter(job for warp in range(found.warps) for job in found.own(warp, len(layers)))
        assert work == Counter({job: found.groups for job in range(len(layers))})


class Counting(teams.Ways):
    """The names of ways instead of instructions."""

    def __init__(self, plan: teams.Plan, moves: bool) -> None:
        self.plan, self.moves, self.warps = plan, moves, plan.warps

    def __getattribute__(self, name: str) -> Any:
        if name in ("_octet", "_part", "_constant", "_barrier"):
            return lambda *how: (name, *how)
        return super().__getattribute__(name)


def test_what_warps_do_in_a_step() -> None:
    sizes = (784, 512, 10)
    reads = teams.Reads.of_layers(sizes)
    rests, _ = plan(widths=sizes, batch=20, continual=True)
    warps = [Counting(rests, False).of_warp(warp, (0, 1), reads) for warp in range(rests.warps)]
    assert [*filter(None, warps)] == [[("_octet", 0, 1, False)], [("_octet", 4, 0, False)]]
    moves, _ = plan("moving_", widths=sizes, batch=20, continual=True)
    of_output = [Counting(moves, True).of_warp(warp, (1,), reads) for warp in range(moves.warps)]
    own = [("_constant", False), ("_barrier",), ("_octet", 4, 0, False)]
    assert (moves.warps, moves.groups) == (12, 5)
    nothing: list[tuple[Any, ...]] = [("_barrier",)]
    assert of_output == [[("_part", True, False), *own]] * 4 + [own] + [nothing] * 7
    of_first = [Counting(moves, True).of_warp(warp, (0,), reads) for warp in range(moves.warps)]
    own = [("_constant", True), ("_barrier",), ("_octet", 0, 1, False)]
    assert of_first == [[("_part", False, True), *own]] + [own] * 4 + [nothing] * 7
