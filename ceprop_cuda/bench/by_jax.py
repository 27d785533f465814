"""A whole training step by JAX: one function under jax.jit makes both phases and moves the parameters.

What a good user of JAX writes. States step in a loop of XLA's, two at a time, which saves it copies of them. The drive
by the input is computed once where weights rest. EP's contrast and its step of plain SGD are in the function; so are
continual EP's updates, of every parameter at every nudged step. The parameters stay in JAX's buffers from step to step,
which XLA may write in place (they are donated).

``gram`` does in continual EP what same_algebra.py does about connection 0, by far its largest: it moves at the end, and
until then its drive through x x^T.

On the CPU only. XLA's pool has as many threads as PyTorch has when a step is built; which of its loops and products are
worth more than one of them XLA decides. It asks for that number once, when its client is made, so that another number
takes a new client; arrays and compiled functions of the old one are lost to all of the process. JAX's x64 mode is on,
as float64 is checked, and floats stay float32 where they are float32.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..networks import Network
from ..spec.dynamics import Circuit
from .cases import Case

Array = Any  # jax.Array, which is there only if jax is
_client = {"threads": 0}  # that this module's client of XLA has; 0: there is none yet


class Parameters(NamedTuple):
    """As in Circuit, as JAX's arrays."""

    weights: list[Array]
    biases: list[Array]
    feedback: list[Array]  # empty: tied


class Program:
    """The training step of a case, or its free phase alone, as a function for jax.jit."""

    def __init__(self, jax: ModuleType, case: Case, gram: bool) -> None:
        self.jax, self.case, self.gram = jax, case, gram

    def __call__(self, p: Parameters, x: Array, y: Array) -> tuple[Parameters, list[Array], list[Array]]:
        """The parameters after the step and the states ``(B, n)`` at the ends of the two phases, from inputs ``(B,
        n_in)`` and targets ``(B, classes)``."""
        case, drive = self.case, _drive_by_input(p, x)
        rest = [self.jax.numpy.zeros((len(x), n), x.dtype) for n in case.sizes[1:]]
        free = self._loop(case.free_steps, partial(self._step, p, drive), rest)
        if case.nudged_steps == 0:
            return p, free, []
        if not case.preset.continual:
            nudged = self._loop(case.nudged_steps, partial(self._step, p, drive, y=y), free)
            return self._moved(p, x, free, nudged), free, nudged
        if self.gram:
            p, nudged = self._nudge_by_gram(p, x, y, drive, free)
        else:
            p, nudged = self._nudge_literally(p, x, y, free)
        return p, free, nudged

    def _nudge_literally(self, p: Parameters, x: Array, y: Array, free: list[Array]) -> tuple[Parameters, list[Array]]:
        """Continual EP's nudged phase: after it the parameters and the states."""

        def learn(carried: tuple[Parameters, list[Array]]) -> tuple[Parameters, list[Array]]:
            p, before = carried
            after = self._step(p, _drive_by_input(p, x), before, y)
            return self._moved(p, x, before, after), after

        p, nudged = self._loop(self.case.nudged_steps, learn, (p, free))
        return p, nudged

    def _nudge_by_gram(
        self, p: Parameters, x: Array, y: Array, drive: Array, free: list[Array]
    ) -> tuple[Parameters, list[Array]]:
        """The same, but that connection 0 moves at the end."""
        gram = self._rate(0, x) * (x @ x.T + 1)  # 1: the bias

        def learn(carried: tuple[Parameters, Array, list[Array]]) -> tuple[Parameters, Array, list[Array]]:
            p, drive, before = carried
            after = self._step(p, drive, before, y)
            return self._moved(p, x, before, after, first=1), drive + gram @ (after[0] - before[0]), after

        p, _, nudged = self._loop(self.case.nudged_steps, learn, (p, drive, free))
        by_input = self._moved(p, x, free, nudged)
        weights = [by_input.weights[0], *p.weights[1:]]
        return Parameters(weights, [by_input.biases[0], *p.biases[1:]], p.feedback), nudged

    def _loop(self, steps: int, body: Callable[[Any], Any], start: Any) -> Any:
        return self.jax.lax.fori_loop(0, steps, lambda _, carried: body(carried), start, unroll=2)

    def _step(self, p: Parameters, drive: Array, states: Sequence[Array], y: Array | None = None) -> list[Array]:
        """One step where the input drives layer 0 by ``drive`` ``(B, n_0)``; towards ``y`` a nudged one."""
        back, after = p.feedback or p.weights[1:], []
        for layer, (w, b) in enumerate(zip(p.weights, p.biases, strict=True)):
            a = drive if layer == 0 else states[layer - 1] @ w.T + b
            if layer + 1 < len(states):
                a = a + states[layer + 1] @ back[layer]
            after.append(self.jax.nn.sigmoid(4 * (a - 0.5)))
        if y is not None:
            after[-1] = after[-1] + self.case.preset.beta * (y - states[-1])
        return after

    def _moved(
        self, p: Parameters, x: Array, before: Sequence[Array], after: Sequence[Array], first: int = 0
    ) -> Parameters:
        """What the contrast between two states makes of the parameters, but for connections below ``first``."""
        weights, biases, feedback = map(list, p)
        moved = [b - a for a, b in zip(before, after, strict=True)]
        for c in range(first, len(moved)):
            rate = self._rate(c, x)
            if c == 0:
                change = moved[0].T @ x
            elif feedback:
                change = moved[c].T @ before[c - 1]
                feedback[c - 1] += rate * (before[c].T @ moved[c - 1])
            else:
                change = after[c].T @ after[c - 1] - before[c].T @ before[c - 1]
            weights[c] += rate * change
            biases[c] += rate * moved[c].sum(0)
        return Parameters(weights, biases, feedback)

    def _rate(self, connection: int, x: Array) -> float:
        """By which a sum over the batch moves the parameters."""
        return self.case.preset.lr[connection] / (self.case.preset.beta * len(x))


class ByJax:
    """A step on the parameters of a network; see contenders.Step.

    A call takes them from the network and gives them back. What is timed is ``run`` alone, after ``load``.

    Raises:
        ModuleNotFoundError: there is no jax.
        ValueError: it does not cover the case.
    """

    def __init__(self, case: Case, net: Network, *, gram: bool = False) -> None:
        circuit = net.circuit()
        _refuse_others(case, circuit)
        self._jax = _jax_with_threads(torch.get_num_threads())
        self._parameters = circuit.parameters()
        self._circuit = circuit
        self._step = self._jax.jit(Program(self._jax, case, gram), donate_argnums=0)

    def load(self, x: Tensor, y: Tensor) -> None:
        """Take the network's parameters and a batch."""
        circuit = self._circuit
        lists = (circuit.weights, circuit.biases, circuit.free_feedback or [])
        self._moving = Parameters(*([self._array(p) for p in of if p is not None] for of in lists))
        self._batch = self._array(x), self._array(y)

    def run(self) -> None:
        """Make a step on what was loaded, and wait for it."""
        results = self._step(self._moving, *self._batch)
        self._moving, self._free, self._nudged = self._jax.block_until_ready(results)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self.load(x, y)
        self.run()
        for p, moved in zip(self._parameters, self._jax.tree_util.tree_leaves(self._moving), strict=True):
            p.copy_(self._tensor(moved))
        return [self._tensor(s) for s in (*self._free, *self._nudged)]

    def _array(self, tensor: Tensor) -> Array:
        return self._jax.numpy.array(tensor.detach().numpy())

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(self._jax.device_get(array))


def _drive_by_input(p: Parameters, x: Array) -> Array:
    return x @ p.weights[0].T + p.biases[0]


def _refuse_others(case: Case, circuit: Circuit) -> None:
    """ValueError if the program is not written for the case."""
    dynamics, preset = circuit.dynamics, case.preset
    kinds = (dynamics.kind, dynamics.schedule, dynamics.activation, dynamics.output_activation)
    not_covered = {
        "devices but the CPU": case.device != "cpu",
        "layers but dense ones in a chain": not circuit.structure.is_chain or bool(circuit.structure.convolutions),
        "units but synchronous, prototypical sigmoid ones": kinds
        != ("prototypical", "synchronous", "sigmoid", "sigmoid"),
        "layers without biases": any(b is None for b in circuit.biases),
        "readouts": circuit.structure.has_readout,
        "nudging but once, at the state": preset.nudging != "positive" or preset.nudge_at not in (None, "state"),
        "EP with free feedback": case.rule == "EP" and circuit.free_feedback is not None,
        "gates": preset.gate is not None,
        "shared updates": preset.shared_update,
        "phases with a tolerance": preset.tolerance is not None,
        "momentum and weight decay": bool(preset.momentum or preset.weight_decay),
    }
    for what, there_is in not_covered.items():
        if there_is:
            raise ValueError(f"jax does not cover {what}")


def _jax_with_threads(count: int) -> ModuleType:
    """The module, whose client of XLA has ``count`` threads."""
    try:
        jax = importlib.import_module("jax")
    except ImportError as error:
        raise ModuleNotFoundError("jax is not installed: pip install 'ceprop_cuda[jax]'") from error
    if _client["threads"] == count:
        return jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    given = os.environ.get("NPROC")
    os.environ["NPROC"] = str(count)  # where XLA's client looks first
    try:
        importlib.import_module("jax.extend.backend").clear_backends()
        jax.devices()  # makes the client
    finally:
        if given is None:
            del os.environ["NPROC"]
        else:
            os.environ["NPROC"] = given
    _client["threads"] = count
    return jax
