"""What a step takes teams of blocks: instructions counted in the machine code, and simulated clocks, without a GPU.

    python benchmarks/sass/teams.py [--sources csrc] [--out benchmarks/results]

Compiles the kernels of csrc/cuda/teams for sm_90; follows what a warp does in a step for an octet of units (sigmoid,
prototypical dynamics, not nudged, no loss that takes outputs together); replays that for all warps of each kind of
block as the library that is built here plans them on an H100, and adds what the exchange takes, which is assumed.
Prints a Markdown table and writes sass_teams.csv. No GPU has measured any of it: a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import compiled
from account import CASES, CLOCKS_OF_A_MICROSECOND, H100, Case
from compiled import cuda_resources
from kinds import counted
from machine import Step, simulate
from parts import Kernel, any_of, made_by
from program import begun
from walk import Event, around

FILE, RELAXATION = "cuda/teams/kernels.cu", "cuda/teams/relaxation.cuh"
CLUSTERS = 7  # of 16 blocks on an H100, an assumption
EXCHANGE_CLOCKS = 300  # from a push to its arrival in a cluster, an assumption
BARRIER_CLOCKS = 40  # of one block, an assumption


@dataclass(frozen=True)
class TeamRow:
    """Of an un-nudged step. Instructions are counted, clocks simulated, the exchange assumed."""

    case: str
    batch: int
    blocks: int  # of a team
    teams: int
    samples: int  # of a group
    groups: int
    rounds: int
    octets: int  # of the busiest block
    warps: int
    instructions: int  # of a warp for the octet that takes most
    multiply_adds: int  # among them
    clocks: float  # of all groups in the busiest block
    exchange_clocks: int
    step_us: float  # of the samples that teams have at once


def way(kernel: Kernel, samples: int, chunks: int, tails: int) -> list[Step]:
    """What a warp executes in a step for an octet that reads so many chunks and tails of sources."""
    multiply = kernel.lines("cuda/teams/lanes.cuh", "multiply")
    show = kernel.lines(RELAXATION, "show", "Relaxation")
    sigmoid, rho = (
        kernel.lines("model/elementary.h", "steep_sigmoid"),
        any_of(kernel.lines("model/activations.h", "rho")),
    )
    of_others = any_of(
        kernel.lines(RELAXATION, "error", "Relaxation"),
        kernel.lines("model/unit_math.h", "next_state").matching(r"moved|clips"),  # of energy dynamics
        kernel.lines("model/activations.h", "rho_prime"),
        show.matching(r"logits|octets|rho<A>"),
    )
    fma = made_by(multiply, "FFMA")
    most = max(kernel.count(loop, fma) for loop in kernel.graph.loops)
    loop = min((one for one in kernel.graph.loops if kernel.count(one, fma) == most), key=lambda one: len(one.blocks))
    of_tails = made_by(multiply.matching(r"weight\[j / 4\]"), "FFMA")
    of_chunks = made_by(multiply.matching(r"weight\.v\[i\] \* state"), "FFMA")
    events = [
        Event("of chunks", of_chunks, 32 * samples * chunks),
        Event("of tails", of_tails, 8 * samples * tails),
        Event("sigmoid", made_by(sigmoid, "FFMA", "FMUL", "MUFU"), at_least=True),
    ]
    return around(
        kernel.graph,
        loop,
        events,
        lambda instruction: of_others(instruction) or (rho(instruction) and not sigmoid.made(instruction)),
    )


def row_of(kernels: dict[str, Kernel], case: Case, plan: dict[str, Any]) -> TeamRow:
    name = f"float, Team{plan['samples']}, {'InBlock' if plan['blocks'] == 1 else 'InCluster'}"
    ways = [way(kernels[name], plan["samples"], *sources) for sources in plan["sources_of_layers"]]
    kinds = {tuple(sorted(layers)): layers for layers in plan["layers_of_octets"] if layers}
    clocks, busiest = max((block_clocks(ways, layers, plan["warps"]), layers) for layers in kinds.values())
    longest = max((ways[layer] for layer in busiest), key=len)
    exchange = BARRIER_CLOCKS if plan["blocks"] == 1 else EXCHANGE_CLOCKS
    all_clocks = clocks * plan["groups"]
    # With more groups than one the others work while one's states are under way.
    step = all_clocks + (exchange if plan["groups"] == 1 or plan["blocks"] == 1 else 0)
    return TeamRow(
        case.name, case.batch, plan["blocks"], plan["teams"], plan["samples"], plan["groups"], plan["rounds"],
        len(busiest), plan["warps"], len(longest), counted(one for one, _ in longest)["multiply_adds"], all_clocks,
        exchange, step / CLOCKS_OF_A_MICROSECOND,
    )  # fmt: skip


def block_clocks(ways: Sequence[list[Step]], layers: Sequence[int], warps: int) -> float:
    """Of one group, by all warps of a block that has octets of these layers."""
    of_warps: list[list[Step]] = [[] for _ in range(min(warps, len(layers)))]
    for number, layer in enumerate(layers):
        of_warps[number % warps] += ways[layer]
    return simulate(of_warps, None).clocks


def markdown_of(rows: Sequence[TeamRow]) -> str:
    from ceprop_cuda.tables import markdown

    lines = [["case", "blocks of a team", "teams", "samples", "rounds", "octets of a block", "instructions", "FFMA"]]
    lines[0] += ["clocks", "exchange (assumed)", "us a step, predicted"]
    for row in rows:
        samples = f"{row.groups} x {row.samples}"
        cells = [row.blocks, row.teams, samples, row.rounds, row.octets, row.instructions, row.multiply_adds]
        lines.append([row.case, *map(str, cells), f"{row.clocks:.0f}", str(row.exchange_clocks), f"{row.step_us:.2f}"])
    return markdown(lines)


def main() -> None:
    from ceprop_cuda import _C

    program = begun(__doc__)
    if program is None:
        return
    tools, csrc, out = (program.nvcc, program.nvdisasm), program.csrc, program.out
    found = compiled.kernels(*tools, csrc / FILE, lambda name: name.startswith("float"))
    kernels = {name: Kernel(name, instructions, csrc) for name, instructions in found.items()}
    device = {key: value for key, value in H100.items() if key != "compute_capability"} | {"clusters": CLUSTERS}
    rows = [
        row_of(
            kernels,
            case,
            _C.team_plan(**device, widths=case.widths, asynchronous=False, batch=case.batch, number_bytes=4),
        )
        for case in CASES
    ]
    print(markdown_of(rows))
    if out:
        cuda_resources.write_table(out / "sass_teams.csv", rows, program.made_by())
        print(f"{out / 'sass_teams.csv'} is written")


if __name__ == "__main__":
    main()
