"""The CUDA kernels, run on the CPU under the emulation behind the functions that ops and reference have."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from cuda_emulation.builds import build
from torch import Tensor

from ceprop_cuda import ops
from ceprop_cuda.arguments.choices import Gate, words
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge, logits, state_shapes
from ceprop_cuda.spec.losses import LOSSES
from ceprop_cuda.spec.reference import CEPResult, EPResult, PerParameter, Relaxed

OPS = ("relax", "ep_step", "cep_step")
TEAMS = ("block", "cluster", "grid", "block, then grid", "cluster, then grid")
POOLS = ("none", "max", "avg")


@cache
def compiled_kernels(
    name: str,
    source: Path,
    others: tuple[object, ...] = (),
    copy: Path | None = None,
    flags: tuple[str, ...] = (),
) -> Path:
    """The program of ``source`` in one of the ways of ``cuda_emulation.builds``, linked with ``others``."""
    fused = ["-mfma"] if "avx2" in ops.build_info()["cpu_kernels_runnable"] else []
    quick = ["-O0"] if name == "asan" else []  # compiles in half
    return build(name, source, *fused, *quick, *flags, others=others, copy=copy)


class Refused(RuntimeError):
    """The kernel stopped with a report: a race, a deadlock, memory out of bounds."""


@dataclass
class EmulatedDevice:
    """Stands where the modules ops and reference stand; every call runs ``program`` once, under a new seed."""

    program: Path  # one of cuda_kernels, compiled
    folder: Path  # for the calls' files
    multiprocessors: int = 4
    cluster_blocks: int = 0
    shared_bytes: int = 99 << 10
    team: str = "block"  # of TEAMS
    skipped_site: str = ""  # the barrier at this place is left out
    counts_turns: bool = False  # of shared memory, in place of the barriers that are met
    seed: int = 0
    stores_only_finite: bool = True
    sites: set[str] = field(default_factory=set)  # of the barriers that the calls have met
    turns: dict[str, int] = field(default_factory=dict)  # most of the calls, by address of the instruction

    def obstacle(self, circuit: Circuit, x: Tensor, gate: str | None = None) -> str | None:
        """The program itself refuses what it does not run."""

    def relax(
        self,
        circuit: Circuit,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        nudge: Nudge | None = None,
        tolerance: float | None = None,
    ) -> Relaxed:
        call = _Call("relax", x.dtype)
        call.network(circuit, x, nudge, tolerance)
        call.integers(steps, states is not None)
        for s in states or ():
            call.array(s)
        made, results = self._run(call)
        return Relaxed(_states(circuit, x, results), made[:1])

    def ep_step(
        self,
        circuit: Circuit,
        x: Tensor,
        nudge: Nudge,
        *,
        free_steps: int,
        nudged_steps: int,
        tolerance: float | None = None,
        symmetric: bool = False,
        accumulate: bool = False,
        shared_update: bool = False,
        gate: str | None = None,
    ) -> EPResult:
        call = _Call("ep_step", x.dtype)
        call.network(circuit, x, nudge, tolerance)
        call.integers(free_steps, nudged_steps, symmetric, shared_update, (None, *words(Gate)).index(gate), accumulate)
        made, results = self._run(call)
        free = _states(circuit, x, results)
        nudged = [_states(circuit, x, results) for _ in range(1 + symmetric)]
        weights, biases, feedback = [], [], []
        for connection, (w, b) in enumerate(zip(circuit.weights, circuit.biases, strict=True)):
            weights.append(results.take(w.shape))
            biases.append(None if b is None else results.take(b.shape))
            if circuit.free_feedback is not None and 0 < connection < circuit.layers:
                feedback.append(results.take(w.shape))
        gradients = PerParameter(weights, biases, feedback)
        return EPResult(gradients, logits(circuit, free), free, nudged, made[: 2 + symmetric])

    def cep_step(
        self,
        circuit: Circuit,
        x: Tensor,
        nudge: Nudge,
        *,
        free_steps: int,
        nudged_steps: int,
        lr: Sequence[float],
        tolerance: float | None = None,
        symmetric: bool = False,
        shared_update: bool = False,
        weight_decay: float = 0.0,
        gate: str | None = None,
    ) -> CEPResult:
        call = _Call("cep_step", x.dtype)
        call.network(circuit, x, nudge, tolerance)
        call.integers(free_steps, nudged_steps, symmetric, shared_update, (None, *words(Gate)).index(gate))
        call.reals(weight_decay, *lr)
        made, results = self._run(call)
        free = _states(circuit, x, results)
        nudged = [_states(circuit, x, results) for _ in range(1 + symmetric)]
        output = logits(circuit, free)
        for p in circuit.parameters():
            p.copy_(results.take(p.shape))
        return CEPResult(circuit, output, free, nudged, made[: 4 if symmetric else 2])

    def _run(self, call: _Call) -> tuple[Tensor, _Results]:
        self.seed += 1
        call.integers(self.multiprocessors, self.shared_bytes, self.cluster_blocks, TEAMS.index(self.team))
        call.integers(self.seed)
        given, gave = self.folder / "call", self.folder / "results"
        given.write_bytes(call.bytes)
        self._execute(given, gave)
        raw = gave.read_bytes()
        made = torch.tensor(struct.unpack("4q", raw[:32]))
        return made, _Results(torch.frombuffer(bytearray(raw[32:]), dtype=call.dtype))

    def _execute(self, given: Path, gave: Path) -> None:
        command = [str(self.program), str(given), str(gave), "turns" if self.counts_turns else self.skipped_site]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            report = done.stderr or f"exit status {done.returncode}"
            raise Refused(report if len(report) < 6000 else f"{report[:5000]}\n...\n{report[-1000:]}")
        if self.counts_turns:
            for address, turns in (line.split() for line in done.stdout.splitlines()):
                self.turns[address] = max(self.turns.get(address, 0), int(turns))
        else:
            self.sites.update(done.stdout.split())


class _Call:
    """What run_call.cpp reads, in its order."""

    def __init__(self, op: str, dtype: torch.dtype) -> None:
        self.bytes = b""
        self.dtype = dtype
        self.integers(OPS.index(op), dtype.itemsize)

    def integers(self, *values: int) -> None:
        self.bytes += struct.pack(f"{len(values)}q", *map(int, values))

    def reals(self, *values: float) -> None:
        self.bytes += struct.pack(f"{len(values)}d", *values)

    def array(self, tensor: Tensor | None) -> None:
        self.integers(0 if tensor is None else tensor.numel())
        if tensor is not None:
            self.bytes += tensor.contiguous().numpy().tobytes()

    def network(self, circuit: Circuit, x: Tensor, nudge: Nudge | None, tolerance: float | None) -> None:
        d = circuit.dynamics
        maps = [(*x.shape[1:], 1, 1)[:3], *((*shape, 1, 1)[:3] for shape in state_shapes(circuit, x.shape[2:]))]
        if circuit.structure.has_readout:
            maps.append((len(circuit.weights[-1]), 1, 1))
        self.integers(circuit.structure.has_readout, circuit.free_feedback is not None, d.schedule == "asynchronous")
        self.integers(3 * len(maps), *chain.from_iterable(maps), 9 * len(circuit.structure.convolutions))
        for c, w in zip(circuit.structure.convolutions, circuit.weights, strict=False):
            window = (1, 1) if c.pool == "none" else c.window
            self.integers(*w.shape[2:], *c.stride, *c.padding, *window, POOLS.index(c.pool))
        self.integers(*(list(ACTIVATIONS).index(name) for name in (d.activation, d.output_activation)))
        self.integers(d.kind == "energy", d.clip)
        self.reals(d.dt)
        for p in (*circuit.weights, *circuit.biases, *(circuit.free_feedback or ())):
            self.array(p)
        self.integers(len(x))
        self.array(x)
        target = None if nudge is None else nudge.target
        is_index = target is not None and target.ndim == 1
        self.array(None if is_index else target)
        self.array(target if is_index else None)
        self.reals(0.0 if nudge is None else nudge.beta)
        self.integers(nudge is not None and nudge.at == "drive", 0 if nudge is None else LOSSES.index(nudge.loss))
        self.reals(-1.0 if tolerance is None else tolerance)


class _Results:
    """The numbers that came back, taken from the front."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers

    def take(self, shape: Sequence[int]) -> Tensor:
        count = torch.Size(shape).numel()
        taken, self._numbers = self._numbers[:count], self._numbers[count:]
        return taken.reshape(shape).clone()


def _states(circuit: Circuit, x: Tensor, results: _Results) -> list[Tensor]:
    return [results.take((len(x), *shape)) for shape in state_shapes(circuit, x.shape[2:])]
