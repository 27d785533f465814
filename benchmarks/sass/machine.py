"""A timing model of one multiprocessor of an H100, which replays what its warps execute. Simulated, not measured.

Warps run in order. A warp's next instruction issues when its stall count is over, the scoreboards that it waits for are
free (see disassembly.py) and its pipe is; of the four schedulers, each issues one instruction a clock, of the warp
that it served last if that can go on, else of the first that can. Shared memory and the caches' first level serve
wavefronts of 128 bytes, one a clock, to all schedulers. Clocks, rates and latencies are below; every latency is an
assumption, near what others measured by microbenchmarks.

Not in it: caches of instructions and misses of any cache, conflicts between banks, other blocks' traffic, clocks that
change, threads of a warp that part.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from disassembly import NONE, Instruction

SCHEDULERS = 4
SCOREBOARDS = 6
TAKEN_BRANCH = 6  # clocks that a warp loses by it, beside its stall count
BARRIER = 24  # clocks from the last warp's arrival at a block's barrier until the others go on
OPERANDS_READ = 12  # clocks until an instruction has read its operands; of memory's see Multiprocessor._serve
TO_MEMORY = 4  # clocks from issue to the first wavefront
MEMORY_QUEUE = 40  # clocks of wavefronts that wait before a scheduler must

WAITS_FOR_MOST = re.compile(r"SB(\d), 0x([0-9a-f]+)")  # holds of the scoreboard that may be left

Step = tuple[Instruction, bool]  # of a trace: what a warp executes, and whether it branches


class Timing(NamedTuple):
    """Of an instruction of a warp."""

    pipe: str  # "FMA" is two halves, either of which does; "control" has no rate
    busy: int  # clocks until the pipe takes the next
    wavefronts: int
    latency: int  # clocks until the scoreboard is free that it sets


SHARED_WIDTHS = {"128": 4, "64": 2}  # wavefronts by bits of a thread, of an access to shared memory; else 1
OTHER_WIDTHS = {"128": 4}
USUAL_LATENCY = 14
FROM_L2 = 300  # to a register; what LDGSTS brings goes on to shared memory

# By the beginning of the opcode; the first that fits counts. Wavefronts: None for those of the width.
TIMINGS: tuple[tuple[tuple[str, ...], str, int, dict[str, int] | None, int], ...] = (
    (("FFMA", "FADD", "FMUL"), "FMA", 2, None, USUAL_LATENCY),
    (("HFMA2", "IMAD"), "FMA heavy", 2, None, USUAL_LATENCY),
    (("DADD", "DMUL", "DFMA", "DSETP"), "FP64", 2, None, 18),
    (("MUFU",), "special", 8, None, 22),
    (("I2F", "F2I", "F2F", "I2I", "POPC", "FLO"), "special", 8, None, 20),
    (("BREV",), "special", 8, None, USUAL_LATENCY),
    (("SHFL",), "memory", 2, {}, 24),
    (("LDSM",), "ALU", 2, None, 30),
    (("LDS",), "memory", 2, SHARED_WIDTHS, 30),
    (("STS",), "memory", 2, SHARED_WIDTHS, 14),
    (("STAS", "SYNCS"), "memory", 4, OTHER_WIDTHS, USUAL_LATENCY),
    (("LDGSTS",), "memory", 2, OTHER_WIDTHS, FROM_L2 + 30),
    (("LDGDEPBAR", "DEPBAR"), "control", 1, None, USUAL_LATENCY),
    (("LDG",), "memory", 2, OTHER_WIDTHS, FROM_L2),
    (("STG",), "memory", 2, OTHER_WIDTHS, 20),
    (("ATOM",), "memory", 2, OTHER_WIDTHS, 400),
    (("RED", "LDL", "STL"), "memory", 2, OTHER_WIDTHS, USUAL_LATENCY),
    (("LDC",), "memory", 2, None, 32),
    (("S2R",), "memory", 2, None, 28),
    (("R2UR", "S2UR"), "uniform", 2, None, 28),
    (("UCGABAR",), "control", 1, None, USUAL_LATENCY),
    (("ULDC",), "uniform", 2, None, USUAL_LATENCY),
    (("U",), "uniform", 2, None, USUAL_LATENCY),
    (("CS2R",), "ALU", 2, None, 28),
    (("VOTE",), "ALU", 2, None, 12),
    (("BRA", "BRX", "BSSY", "BSYNC", "BREAK", "BMOV", "CALL", "RET", "EXIT"), "control", 1, None, USUAL_LATENCY),
    (("BAR", "WARPSYNC", "NOP", "YIELD", "NANOSLEEP"), "control", 1, None, USUAL_LATENCY),
    (("MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL"), "control", 1, None, USUAL_LATENCY),
    (("",), "ALU", 2, None, USUAL_LATENCY),
)
WIDE_SHARED_LOAD = 34  # latency of LDS.128


def timing_of(opcode: str) -> Timing:
    for beginnings, pipe, busy, widths, latency in TIMINGS:
        if opcode.startswith(beginnings):
            wavefronts = 0 if widths is None else next((widths[w] for w in opcode.split(".") if w in widths), 1)
            is_wide = opcode.startswith("LDS.") and wavefronts == SHARED_WIDTHS["128"]
            return Timing(pipe, busy, wavefronts, WIDE_SHARED_LOAD if is_wide else latency)
    raise AssertionError  # the last fits all


@dataclass(frozen=True)
class Simulated:
    clocks: int  # until the last warp has ended
    issued: Counter[str]  # instructions of all warps, by name


@dataclass(eq=False)
class Warp:
    trace: Sequence[Step]
    scheduler: int
    done: int = 0  # instructions
    ready: int = 0  # clock of the next
    held: list[int] = field(default_factory=lambda: [0] * SCOREBOARDS)  # how many hold each scoreboard
    releases: list[tuple[int, int]] = field(default_factory=list)  # clock and scoreboard
    brought: int = 0  # clock at which all is there that LDGSTS brings
    at_barrier: bool = False

    @property
    def is_running(self) -> bool:
        return self.done < len(self.trace)

    def release(self, clock: int) -> None:
        for when, scoreboard in self.releases:
            if when <= clock:
                self.held[scoreboard] -= 1
        self.releases = [release for release in self.releases if release[0] > clock]

    def hold(self, scoreboard: int, until: int) -> None:
        if scoreboard != NONE:
            self.held[scoreboard] += 1
            self.releases.append((until, scoreboard))

    def may_issue(self, clock: int) -> bool:
        if self.at_barrier or self.ready > clock:
            return False
        instruction = self.trace[self.done][0]
        awaited = WAITS_FOR_MOST.match(instruction.operands) if instruction.name == "DEPBAR" else None
        if awaited and self.held[int(awaited[1])] > int(awaited[2], 16):
            return False
        return not any(count and instruction.control.needs(scoreboard) for scoreboard, count in enumerate(self.held))


class Multiprocessor:
    """With the warps of one block."""

    def __init__(self, traces: Sequence[Sequence[Step]]) -> None:
        self.warps = [Warp(trace, index % SCHEDULERS) for index, trace in enumerate(traces)]
        self.issued: Counter[str] = Counter()
        self._timings: dict[str, Timing] = {}
        self._free: list[defaultdict[str, int]] = [defaultdict(int) for _ in range(SCHEDULERS)]  # by pipe the clock
        self._memory_free = 0  # clock
        self._last: list[Warp | None] = [None] * SCHEDULERS

    def run(self, limit: int) -> Simulated:
        clock = 0
        while any(warp.is_running for warp in self.warps):
            if clock >= limit:
                raise RuntimeError(f"not at its end after {limit} clocks")
            for scheduler in range(SCHEDULERS):
                self._issue_one(scheduler, clock)
            clock += 1
        return Simulated(clock, self.issued)

    def _issue_one(self, scheduler: int, clock: int) -> None:
        own = [warp for warp in self.warps if warp.scheduler == scheduler and warp.is_running]
        for warp in sorted(own, key=lambda warp: warp is not self._last[scheduler]):
            if warp.releases:
                warp.release(clock)
            if warp.may_issue(clock) and self._issue(warp, clock):
                self._last[scheduler] = warp
                return

    def _issue(self, warp: Warp, clock: int) -> bool:
        """Whether the warp's next instruction finds its pipe free; if so, it is issued."""
        instruction, is_taken = warp.trace[warp.done]
        opcode = instruction.opcode
        if opcode not in self._timings:
            self._timings[opcode] = timing_of(opcode)
        timing = self._timings[opcode]
        free = self._free[warp.scheduler]
        pipe = timing.pipe
        if pipe == "FMA":
            pipe = min(("FMA heavy", "FMA light"), key=lambda half: free[half])
        if pipe != "control":
            if free[pipe] > clock:
                return False
            free[pipe] = clock + timing.busy
        result, operands = clock + timing.latency, clock + OPERANDS_READ
        if timing.wavefronts:
            result, operands = self._serve(timing, free, clock)
        if instruction.name == "LDGSTS":
            warp.brought = max(warp.brought, result)
        elif instruction.name == "LDGDEPBAR":  # holds its scoreboard until all is there
            result = max(result, warp.brought)
        warp.hold(instruction.control.sets, result)
        warp.hold(instruction.control.frees, operands)
        warp.ready = clock + max(instruction.control.stall, 1) + (TAKEN_BRANCH if is_taken else 0)
        warp.done += 1
        self.issued[instruction.name] += 1
        if opcode.startswith(("BAR.SYNC", "BAR.RED")):
            self._arrive(warp, clock)
        return True

    def _serve(self, timing: Timing, free: defaultdict[str, int], clock: int) -> tuple[int, int]:
        """By the memory that all schedulers share: when the result is there, and when the operands have been read."""
        begin = max(self._memory_free, clock + TO_MEMORY)
        self._memory_free = begin + timing.wavefronts
        if begin - clock > MEMORY_QUEUE:
            free["memory"] = max(free["memory"], begin - MEMORY_QUEUE + TO_MEMORY)
        return begin + timing.latency - TO_MEMORY, max(clock + 8, begin + 2)

    def _arrive(self, warp: Warp, clock: int) -> None:
        warp.at_barrier = True
        if all(other.at_barrier for other in self.warps if other.is_running or other is warp):
            for other in self.warps:
                other.at_barrier = False
                other.ready = max(other.ready, clock + BARRIER)


def simulate(traces: Sequence[Sequence[Step]], limit: int = 1_000_000) -> Simulated:
    """A block whose warps execute these traces; RuntimeError if one has not ended after so many clocks."""
    return Multiprocessor(traces).run(limit)
