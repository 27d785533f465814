"""What a step takes teams of blocks on an H100: counted in the machine code and simulated, without a GPU.

    python benchmarks/sass/teams.py [--sources csrc] [--out benchmarks/results]

Compiles the kernels of csrc/cuda/teams for sm_90. Follows what each warp of a block executes in a step, as the library
that is built here plans the call on an H100: sigmoid, prototypical dynamics, not nudged, no loss that takes outputs
together. Where weights move in the step, it follows their update, too. Replays that for all warps of each kind of
block, and adds what the exchange takes, as measured alone. Prints Markdown tables and writes sass_teams.csv. All times
are predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import compiled
from kernel import MOVING, RELAXATION, RESTING, Kernel, any_of, made_by
from machine import Step, simulate
from walk import Event, Test, around, never, unwanted_in

FILE = "cuda/teams/kernels.cu"
LANES, UPDATE = "cuda/teams/lanes.cuh", "cuda/teams/continual_update.cuh"
CASES = ("ep-1h-b20", "ep-2h-b20", "p-3h-b20", "c-ep-1h-b20", "c-vf-1h-b20", "c-ep-2h-b20", "c-vf-2h-b20")
CASES += ("ep-2h-b64", "ep-2h-b256")  # as the benchmark has them, of which none has a gate

H100: dict[str, int] = {"multiprocessors": 132, "shared_bytes": 227 * 1024, "cluster_blocks": 16, "clusters": 7}
CLOCKS_OF_A_MICROSECOND = 1980
# From the last warp's work to the next step's: a block's barrier, assumed; a push to its arrival in a cluster, and a
# barrier of the grid, as benchmarks/results/gpu_micro.csv has them (mailbox-6kB, grid-barrier).
EXCHANGE_CLOCKS = {"block": 40, "cluster": 670, "grid": 2220}
# A block of a grid copies what it reads: clocks until the first of it comes, and bytes a clock after that (l2-latency,
# l2-80kB-rate for each multiprocessor).
CLOCKS_OF_A_COPY, COPIED_BYTES_OF_A_CLOCK = 280, 46


@dataclass(frozen=True)
class TeamRow:
    """Of a step. Instructions are counted, clocks simulated, the exchange is from what was measured alone."""

    case: str
    phase: str
    batch: int
    team: str
    blocks: int  # of a team
    teams: int
    samples: int  # of a group
    groups: int
    rounds: int
    octets: int  # of the busiest block
    warps: int
    instructions: int  # of the warp of the busiest block that has most
    multiply_adds: int  # among them
    unwanted: int  # among them, which other cases need and the way found could not do without
    clocks: int  # of all groups in the busiest block
    update_clocks: int  # of its update of weights, simulated alone; 0 where they rest
    exchange_clocks: int
    step_us: float  # of the samples that teams have at once
    steps: int  # of a training step


@dataclass(frozen=True)
class Plan:
    """How the samples of a phase lie in teams; the fields are those of ops.launch_plan()."""

    team: str
    blocks: int
    teams: int
    warps: int
    samples: int
    groups: int
    rounds: int
    layers_of_octets: list[list[int]]
    copied_groups: int = 0  # of a grid

    @classmethod
    def of(cls, facts: dict[str, Any], prefix: str) -> Plan:
        return cls(**{name: facts[prefix + name] for name in cls.__dataclass_fields__ if prefix + name in facts})

    def copies_alone(self, jobs: int) -> bool:
        """Whether each warp of a block of a grid copies its own groups' states, where weights rest; see layout.h."""
        return self.team == "grid" and jobs == 1 and min(self.groups, self.warps) <= self.copied_groups

    def own(self, warp: int, jobs: int) -> list[int]:
        """The octets among a block's that a warp moves in a step, once for each of its groups; see shares_of() in
        layout.h."""
        job_warps = max(1, min(jobs, self.warps))
        group_warps = min(self.groups, self.warps // job_warps)
        if warp >= job_warps * group_warps:
            return []
        of_one = range(warp % job_warps, jobs, job_warps)
        return [*of_one] * len(range(warp // job_warps, self.groups, group_warps))


@dataclass(frozen=True)
class Way:
    """What a warp executes in one turn of a loop."""

    steps: list[Step]
    unwanted: int


@dataclass(frozen=True)
class Reads:
    """Chunks of sources, and pairs of octets behind them, that an octet reads, see layout.h."""

    chunks: int
    pairs: int

    @classmethod
    def of(cls, units: int) -> Reads:
        chunks, rest = divmod(units, 128)
        return cls(chunks + 1, 0) if rest > 64 else cls(chunks, (rest + 15) // 16)

    @classmethod
    def of_layers(cls, sizes: Sequence[int]) -> list[tuple[Reads, Reads]]:
        """By layer what an octet reads from below and from above. The input, the first of the sizes, is constant."""
        each = [cls(0, 0), *map(cls.of, sizes[1:]), cls(0, 0)]
        return [(each[layer], each[layer + 2]) for layer in range(len(sizes) - 1)]

    def parts(self) -> list[bool]:
        """Whether each is a chunk."""
        return [True] * self.chunks + [False] * self.pairs


class Ways:
    """The ways through a kernel's step, each found once."""

    def __init__(self, kernel: Kernel, where: str, plan: Plan, warps: int, batch: int, apart: bool) -> None:
        self.kernel, self.plan, self.batch, self.apart = kernel, plan, batch, apart
        self.warps = warps  # of the launch
        self.moves = where == MOVING
        self._step = kernel.step_loops()[where]
        self._loops = [*kernel.loops_in(self._step), self._step]
        self._found: dict[tuple[object, ...], Way] = {}

    def of_warp(self, warp: int, layers: Sequence[int], reads: Sequence[tuple[Reads, Reads]]) -> list[Way]:
        """What a warp does in a step, in a block that has octets of these layers."""
        own = [reads[layers[job]] for job in self.plan.own(warp, len(layers))]
        update = [*self.update_of_warp(warp, layers, reads), self._barrier()] if self.moves else []
        alone = not self.moves and self.plan.copies_alone(len(layers))
        octets = [self._octet(below.chunks + above.chunks, below.pairs + above.pairs, alone) for below, above in own]
        return update + octets

    def update_of_warp(self, warp: int, layers: Sequence[int], reads: Sequence[tuple[Reads, Reads]]) -> list[Way]:
        """What it does to move weights."""
        all_parts = [
            (is_chunk, side == 1)
            for layer in layers
            for side, from_there in enumerate(reads[layer])
            for is_chunk in from_there.parts()
        ]
        parts = [self._part(*part) for part in all_parts[warp :: self.warps]]
        return parts + [self._constant(layers[job] == 0) for job in self.plan.own(warp, len(layers))]

    def _around(self, key: tuple[object, ...], test: Test, events: Sequence[Event], unwanted: Test) -> Way:
        """One turn of the smallest loop that has most of such instructions."""
        if key not in self._found:
            loop = self.kernel.smallest_with_most(test, self._loops)
            steps = around(self.kernel.graph, loop, events, unwanted)
            self._found[key] = Way(steps, unwanted_in(steps, unwanted))
        return self._found[key]

    def _octet(self, chunks: int, pairs: int, copies: bool) -> Way:
        """The new states of an octet and a group, of which the warp copies what they read, if it does."""
        lines, samples = self.kernel.lines, self.plan.samples
        multiply, show = lines(LANES, "multiply"), lines(RELAXATION, "show", "Relaxation")
        sigmoid = lines("model/elementary.h", "steep_sigmoid")
        rho = any_of(lines("model/activations.h", "rho"))
        of_others = any_of(
            lines(RELAXATION, "error", "Relaxation"),
            lines(RELAXATION, "next_of", "Relaxation"),
            lines("model/unit_math.h", "next_state").matching(r"moved|clips"),  # of energy dynamics
            lines("model/activations.h", "rho_prime"),
            lines(UPDATE, "note_shown").matching(r"before"),  # of energy dynamics
            show.matching(r"logits|octets|rho<A>"),
        )
        of_pairs = made_by(lines(LANES, "multiply_own"), names=("FFMA",))
        of_chunks = made_by(multiply.matching(r"weight\.v\[i\] \* state"), names=("FFMA",))
        events = [
            Event("of chunks", of_chunks, 32 * samples * chunks),
            Event("of pairs", of_pairs, 16 * pairs),
            Event("sigmoid", made_by(sigmoid, names=("FFMA", "FMUL", "MUFU")), at_least=True),
        ]
        if copies:
            copied = made_by(lines(RELAXATION, "copy_own_states", "Relaxation"), names=("LDGSTS",))
            events.append(Event("copied", copied, samples * (16 * chunks + 2 * pairs) * 2 // 32, at_least=True))
        return self._around(
            ("octet", chunks, pairs, copies),
            made_by(multiply, names=("FFMA",)),
            events,
            lambda i: of_others(i) or (rho(i) and not sigmoid.made(i)),
        )

    def _part(self, is_chunk: bool, from_above: bool) -> Way:
        """The update of the weights from a chunk or a pair of octets, by all groups; without what copies states."""
        variant = "true, false" if self.apart else "false, true" if from_above else "false, false"
        of_variant = self.kernel.lines(UPDATE, "add_of_learning", "Part").matching(rf"<Near, {variant}>")
        units = self.kernel.lines(UPDATE, "units_at").matching("auto low" if is_chunk else "return {jobs")
        terms = (1 if self.apart else 2) * self.plan.samples * self.plan.groups
        events = [
            Event("products", made_by(of_variant, names=("FFMA",)), (32 if is_chunk else 4) * terms),
            Event("units", made_by(of_variant, units, names=("LDS",)), at_least=True),
        ]
        move = made_by(self.kernel.lines(UPDATE, "move", "Part"), names=("FFMA",))
        copies = self._around(("part", is_chunk, from_above), move, events, lambda i: i.name in ("LDG", "LDGSTS"))
        return Way(copies.steps, 0)  # the few that no way can do without are in the exchange as well

    def _constant(self, of_input: bool) -> Way:
        """The update of a bias, in layer 0 with the input's drive, of an octet and a group."""
        lines = self.kernel.lines(UPDATE, "move_constant")
        with_gram = made_by(lines.matching(r"row \+ b \* bytes"), names=("LDS",))
        of_bias = made_by(lines.matching(r"return ones\(\)"), names=("LDS",))
        of_group = self.plan.samples + of_input  # what its samples have moved by, and a row of x x^T
        events = [Event("moves", with_gram if of_input else of_bias, self.plan.groups * of_group)]
        return self._around(("constant", of_input), made_by(lines, names=("STS",)), events, never)

    def _barrier(self) -> Way:
        """Of the block, between the update and the new states."""
        sync = made_by(self.kernel.lines(RELAXATION, "move_weights"), names=("BAR",))
        inside = self.kernel.graph.instructions_of(self._step)
        return Way([(next(i for i in inside if sync(i) and i.opcode.startswith("BAR.SYNC")), False)], 0)


def trace_of(ways: Sequence[Way]) -> list[Step]:
    return [step for way in ways for step in way.steps]


def copied_bytes(layers: Sequence[int], reads: Sequence[tuple[Reads, Reads]], plan: Plan) -> int:
    """Of the states that a block with octets of these layers reads in a step, of float32 and without empty rows."""
    units = {}
    for layer in layers:
        below, above = reads[layer]
        units[layer - 1], units[layer + 1] = (128 * of.chunks + 16 * of.pairs for of in (below, above))
    return 4 * sum(units.values()) * plan.samples * plan.groups


def exchange_of(ways: Ways, layers: Sequence[int], reads: Sequence[tuple[Reads, Reads]], clocks: int) -> int:
    """Clocks that a block with octets of these layers takes beside those in which its warps work."""
    plan = ways.plan
    exchange = EXCHANGE_CLOCKS[plan.team]
    if plan.team == "grid":
        copies = round(copied_bytes(layers, reads, plan) / COPIED_BYTES_OF_A_CLOCK)
        alone = not ways.moves and plan.copies_alone(len(layers))
        exchange += max(0, copies - clocks) if alone else CLOCKS_OF_A_COPY + copies
    if ways.moves and plan.team == "cluster":
        exchange += EXCHANGE_CLOCKS["block"]  # whose warps meet before they move weights
    return exchange


def row_of(ways: Ways, case: Any, phase: str, steps: int) -> TeamRow:
    """Of a case of the benchmark, of the busiest block."""
    plan, reads = ways.plan, Reads.of_layers(case.sizes)
    found = []
    for layers in {tuple(layers) for layers in plan.layers_of_octets if layers}:
        warps = [ways.of_warp(warp, layers, reads) for warp in range(ways.warps)]
        traces = [*map(trace_of, warps)]
        longest = max(range(ways.warps), key=lambda warp: len(traces[warp]))
        clocks = simulate(traces).clocks
        exchange = exchange_of(ways, layers, reads, clocks)
        found.append((clocks + exchange, clocks, layers, traces[longest], warps[longest]))
    both, clocks, layers, trace, of_longest = max(found, key=lambda one: one[:3])
    update = 0
    if ways.moves:
        of_update = [trace_of(ways.update_of_warp(warp, layers, reads)) for warp in range(ways.warps)]
        update = simulate(of_update).clocks
    return TeamRow(
        case.name, phase, case.batch, plan.team, plan.blocks, plan.teams, plan.samples, plan.groups, plan.rounds,
        len(layers), plan.warps, len(trace), sum(one.name == "FFMA" for one, _ in trace),
        sum(way.unwanted for way in of_longest), clocks, update, both - clocks,
        both / CLOCKS_OF_A_MICROSECOND, steps,
    )  # fmt: skip


def rows_of(kernels: dict[str, Kernel], case: Any) -> list[TeamRow]:
    """Of free steps and of nudged ones. EP's are the same, but for the nudge of the output, which is not in it."""
    from ceprop_cuda import _C

    preset = case.preset
    if preset.schedule != "synchronous" or preset.dynamics != "prototypical" or preset.activation != "sigmoid":
        raise ValueError(f"{case.name}: only synchronous steps of prototypical dynamics and sigmoids are followed")
    facts = _C.launch_plan(
        **H100, widths=case.sizes, asynchronous=False, batch=case.batch, number_bytes=4, continual=preset.continual,
        tolerance=False,
    )  # fmt: skip

    def row(prefix: str, where: str, phase: str, steps: int) -> TeamRow:
        plan = Plan.of(facts, prefix)
        moves = f", MovesIn{facts['moving_team'].capitalize()}" if preset.continual else ""
        kernel = kernels[f"float, Team{facts['samples']}, In{facts['team'].capitalize()}{moves}"]
        ways = Ways(kernel, where, plan, facts["launch_warps"], case.batch, apart=preset.feedback == "free")
        return row_of(ways, case, phase, steps)

    if not preset.continual:
        return [row("", RESTING, "free, nudged", case.steps)]
    return [
        row("", RESTING, "free", case.free_steps),
        row("moving_", MOVING, "nudged", case.nudged_steps),
    ]


def markdown_of(rows: Sequence[TeamRow]) -> str:
    from ceprop_cuda.output.tables import markdown

    lines = [["case", "steps", "team", "blocks", "teams", "samples", "rounds", "octets of a block", "warps"]]
    lines[0] += ["instructions", "FFMA", "clocks", "of the update", "exchange (measured alone)", "us a step, predicted"]
    for row in rows:
        samples = f"{row.groups} x {row.samples}"
        cells = [row.blocks, row.teams, samples, row.rounds, row.octets, row.warps, row.instructions, row.multiply_adds]
        cells += [row.clocks, row.update_clocks, row.exchange_clocks]
        lines.append([row.case, row.phase, row.team, *map(str, cells), f"{row.step_us:.2f}"])
    return markdown(lines)


def markdown_of_training(rows: Sequence[TeamRow]) -> str:
    from ceprop_cuda.output.tables import markdown

    lines = [["case", "steps", "us of all steps, predicted"]]
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        steps = " + ".join(f"{row.steps} x {row.rounds * row.step_us:.2f}" for row in own)
        lines.append([case, steps, f"{sum(row.steps * row.rounds * row.step_us for row in own):.0f}"])
    return markdown(lines)


def main() -> None:
    from ceprop_cuda.bench.cases import chosen_cases

    csrc, out = compiled.asked(__doc__)
    tools = compiled.tools()
    if tools is None:
        return
    found = compiled.kernels(*tools, csrc / FILE, lambda name: name.startswith("float"))
    kernels = {name: Kernel(name, instructions, csrc) for name, instructions in found.items()}
    rows = [row for case in chosen_cases(CASES) for row in rows_of(kernels, case)]
    print(f"Steps:\n\n{markdown_of(rows)}\n\nAll steps of a training step:\n\n{markdown_of_training(rows)}\n")
    if out:
        compiled.write_table(out / "sass_teams.csv", rows, tools[0], csrc)


if __name__ == "__main__":
    main()
