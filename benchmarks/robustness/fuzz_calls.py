"""What the fuzzer calls: networks, inputs and settings drawn by chance, all of which the kernels have to take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from convolution_variants import Chain, build_chain
from problems import Problem, random_problem
from torch import Tensor
from variants import LOSSES, copy_of

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import Convolution
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

OPS = ("relax", "ep_step", "cep_step")


class Outcome(NamedTuple):
    """What a call found and left."""

    states: list[Tensor]  # with the output, where there is one
    gradients: list[Tensor]
    parameters: list[Tensor]  # after continual EP
    steps: Tensor


@dataclass(frozen=True)
class Call:
    op: str
    problem: Problem
    nudge: Nudge | None  # None: a free phase
    settings: dict[str, Any]  # of the reference's function
    states: list[Tensor] | None = None  # of relax, to start from

    def run(self, module: Any) -> Outcome:
        """By ``module``, which has the functions of the reference; the call's own tensors stay as they are."""
        circuit, x, _ = self.problem
        if self.op == "relax":
            states, steps = module.relax(circuit, x, states=self.states, nudge=self.nudge, **self.settings)
            return Outcome(states, [], [], steps)
        if self.op == "ep_step":
            ran = module.ep_step(circuit, x, self.nudge, **self.settings)
            gradients, parameters = ran.gradients.parameters(), []
        else:
            ran = module.cep_step(copy_of(circuit), x, self.nudge, **self.settings)
            gradients, parameters = [], ran.circuit.parameters()
        return Outcome([ran.output, *ran.free_states, *chain(*ran.nudged_states)], gradients, parameters, ran.steps)

    def in_float64(self) -> Call:
        circuit, x, target = self.problem

        def doubles(tensors: Sequence[Tensor | None]) -> list:
            return [None if t is None else t.double() for t in tensors]

        free = None if circuit.free_feedback is None else doubles(circuit.free_feedback)
        precise = replace(circuit, weights=doubles(circuit.weights), biases=doubles(circuit.biases), free_feedback=free)
        nudge = None if self.nudge is None else replace(self.nudge, target=self.nudge.target.double())
        states = None if self.states is None else doubles(self.states)
        return replace(self, problem=Problem(precise, x.double(), target.double()), nudge=nudge, states=states)


def is_same_run(call: Call, first: Outcome, second: Outcome) -> bool:
    """Whether two runs of the call gave the same bits, but for logits: torch computes those, and rounds by how numbers
    lie in memory."""
    skipped = int(call.op != "relax" and call.problem.circuit.structure.has_readout)
    pairs = [(a, b) for of in zip(first[:3], second[:3], strict=True) for a, b in zip(*of, strict=True)][skipped:]
    return all(torch.equal(a, b) for a, b in (*pairs, (first.steps, second.steps)))


def described(call: Call) -> str:
    """The call in one line."""
    circuit, x, _ = call.problem
    d = circuit.dynamics
    words = [f"x{list(x.shape)}", *("x".join(map(str, w.shape)) for w in circuit.weights), str(x.dtype)[6:]]
    words += [d.kind, d.schedule, d.activation, d.output_activation]
    words += ["tied" if circuit.free_feedback is None else "free"] + ["readout"] * circuit.structure.has_readout
    nudge = "free phase" if call.nudge is None else f"beta={call.nudge.beta:.3g} {call.nudge.at} {call.nudge.loss}"
    made = [f"{c.stride}{c.padding}{c.pool}{c.window}" for c in circuit.structure.convolutions]
    return " ".join([call.op, *words, *made, nudge, str(call.settings)])


def draw_call(draw: random.Random) -> Call:
    """A call that contracts, so that rounding does not grow; the same for the same state of ``draw``."""
    op = draw.choice(OPS)
    is_free = draw.random() < 0.4
    settings: dict[str, Any] = {
        "dynamics": draw.choice(("prototypical", "energy")),
        "schedule": draw.choice(("synchronous", "asynchronous")),
        "feedback": "free" if is_free else "tied",
        "activation": draw.choice(ACTIVATIONS),
        "bias": draw.random() < 0.7,
        **draw.choice(LOSSES),
    }
    dtype = draw.choice((torch.float32, torch.float64))
    has_convolutions, seed = draw.random() < 0.35, draw.randrange(1 << 30)
    if has_convolutions:
        problem, nudge = build_chain({**settings, "chain": 0}, dtype, seed, [_draw_chain(draw)])
    else:
        problem, nudge = _draw_dense(draw, settings, dtype, seed)
    nudge = replace(nudge, beta=draw.choice((-1, 1)) * draw.uniform(0.05, 0.9))
    if draw.random() < 0.4:  # not the target of a class
        soft = torch.rand(nudge.target.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        nudge = replace(nudge, target=soft / soft.sum(1, keepdim=True))
    tolerance = _draw_tolerance(draw, dtype)
    most = 12 if tolerance is None else 40
    if op == "relax":
        states = None
        if draw.random() < 0.5:
            generator = torch.Generator().manual_seed(seed + 1)
            shapes = [s.shape for s in reference.relax(problem.circuit, problem.x, 0).states]
            states = [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
        of_phase = nudge if draw.random() < 0.6 else None
        return Call(op, problem, of_phase, {"steps": draw.randint(0, most), "tolerance": tolerance}, states)
    learning: dict[str, Any] = {
        "free_steps": draw.randint(0, most),
        "nudged_steps": draw.randint(1, most // 2),
        "tolerance": tolerance,
        "symmetric": draw.random() < 0.4,
        "shared_update": is_free and draw.random() < 0.4,
    }
    if op == "ep_step":
        learning["accumulate"] = draw.random() < 0.4
    else:
        learning["lr"] = _draw_rates(draw, problem.circuit)
        learning["weight_decay"] = draw.choice((0.0, 0.0, draw.uniform(0, 0.2)))
    return Call(op, problem, nudge, learning)


def _draw_dense(draw: random.Random, settings: dict[str, Any], dtype: torch.dtype, seed: int) -> tuple[Problem, Nudge]:
    readout = settings.get("readout", False)
    connections = draw.randint(1 + readout, 4 + readout)
    # One unit, few, and around the widths of vectors and tiles.
    sizes = tuple(draw.choice((1, draw.randint(2, 9), draw.randint(10, 70))) for _ in range(connections + 1))
    batch = draw.choice((1, 2, draw.randint(3, 9), draw.randint(10, 40)))
    of_network = {key: value for key, value in settings.items() if key not in ("loss", "at")}
    dt, clip = draw.uniform(0.05, 1.0), draw.random() < 0.7
    problem = random_problem(sizes, batch, dt=dt, clip=clip, dtype=dtype, seed=seed, **of_network)
    return problem, Nudge(problem.target, 1.0, settings["at"], settings["loss"])


def _draw_chain(draw: random.Random) -> Chain:
    """Convolutions and pools that leave something of the image."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw.randint(least, most), draw.randint(least, most)

    while True:
        height, width = image = pair(1, 12)
        channels, kernels, made = [], [], []
        for _ in range(draw.randint(1, 3)):
            kernel = pair(1, 4)
            padding = pair(0, draw.choice((0, 1, 3)))
            stride = pair(1, draw.choice((1, 1, 2, 5)))
            pool = draw.choice(("none", "max", "avg"))
            convolution = Convolution(stride, padding, pool, pair(1, 3))
            height, width = convolution.output_size(torch.empty(1, 1, *kernel), (height, width))
            if min(height, width) < 1:
                break
            channels.append(draw.choice((1, draw.randint(2, 6), draw.randint(7, 20))))
            kernels.append(kernel)
            made.append(convolution)
        if made and min(height, width) >= 1:
            dense = tuple(draw.randint(1, 12) for _ in range(draw.randint(2, 3)))
            batch = draw.choice((1, 2, 3, draw.randint(4, 20)))
            of_image = (draw.randint(1, 4), *image)
            return Chain(of_image, batch, tuple(channels), tuple(kernels), tuple(made), dense)


def _draw_tolerance(draw: random.Random, dtype: torch.dtype) -> float | None:
    """In float32 rounding decides when states have settled: there, only whether a phase stops at once."""
    if draw.random() < 0.7:
        return None
    return 1e9 if dtype == torch.float32 else draw.choice((1e9, 1e-2, 1e-3, 1e-5, 1e-8))


def _draw_rates(draw: random.Random, circuit: Circuit) -> list[float]:
    """As test_kernels.rates has them, or less; some 0."""
    inputs = [w.shape[1] if w.ndim == 2 else 100 * w[0].numel() for w in circuit.weights]
    return [draw.choice((0.0, 1.0, draw.random())) * 0.3 / max(16, count) for count in inputs]
