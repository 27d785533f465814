"""Two ways to the kernels with the functions of ``reference.py``: the raw ops on tensors that lie anyhow in memory, and
the public API."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.arguments.choices import Update, words
from ceprop_cuda.op_arguments import dynamics_arguments, parameters_of
from ceprop_cuda.spec.dynamics import Circuit, Nudge, logits, state_shapes
from ceprop_cuda.spec.reference import CEPResult, EPResult, PerParameter, Relaxed

LAYOUTS = ("plain", "strided", "offset", "transposed", "channels last", "negated")


class Changed(AssertionError):
    """A call has changed what it had to leave alone."""


def bits(tensor: Tensor) -> Tensor:
    """A copy of all that the tensor's storage holds, whoever looks at which part of it."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


class Held:
    """Copies of tensors that lie somehow in memory, and what of that memory must not change."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._kept: list[tuple[str, Tensor, Tensor, Tensor]] = []  # of bytes, those that stay

    def read(self, name: str, tensor: Tensor) -> Tensor:
        """A copy that nothing may write to."""
        view = _laid_out(tensor, self._draw.choice(LAYOUTS))
        before = bits(view)
        self._kept.append((name, view, before, torch.ones_like(before, dtype=torch.bool)))
        return view

    def write(self, name: str, tensor: Tensor) -> Tensor:
        """A copy whose own numbers may change, but nothing between and beside them."""
        view = _laid_out(tensor, self._draw.choice(LAYOUTS[:-1]))
        before = bits(view)
        numbers = torch.ones(len(before) // view.element_size(), dtype=torch.bool)
        numbers.as_strided(view.shape, view.stride(), view.storage_offset())[...] = False
        stays = numbers.repeat_interleave(view.element_size())
        self._kept.append((name, view, before, stays))
        return view

    def refuse_changes(self) -> None:
        for name, view, before, stays in self._kept:
            if not torch.equal(bits(view)[stays], before[stays]):
                raise Changed(f"memory of {name} that is not to be written has changed")


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "strided":  # every second number of a larger tensor, the others NaN
        wide = tensor.new_full([2 * n for n in tensor.shape], _filler(tensor))
        return wide[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)
    if layout == "offset":  # not aligned to a vector
        return tensor.new_full((tensor.numel() + 5,), _filler(tensor))[3:-2].view(tensor.shape).copy_(tensor)
    if layout == "transposed":
        order = list(reversed(range(tensor.ndim)))
        return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(order)
    if layout == "channels last" and tensor.ndim == 4:
        return tensor.clone(memory_format=torch.channels_last)
    if layout == "negated" and tensor.is_floating_point():
        return torch._neg_view(-tensor)
    return tensor.clone(memory_format=torch.contiguous_format)


def _filler(tensor: Tensor) -> float:
    return float("nan") if tensor.is_floating_point() else -1


class RawOps:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._update = draw.choice(words(Update))

    def relax(
        self,
        circuit: Circuit,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        nudge: Nudge | None = None,
        tolerance: float | None = None,
    ) -> Relaxed:
        held = Held(self._draw)
        start = [held.read(f"states[{i}]", s) for i, s in enumerate(states or ())]
        target = None if nudge is None else held.read("target", self._target(nudge))
        found, used = torch.ops.ceprop_cuda.relax(
            *self._parameters(held.read, circuit, x, held),
            start,
            target,
            steps=steps,
            tolerance=tolerance,
            **_nudge(nudge),
            **dynamics_arguments(circuit),
        )
        held.refuse_changes()
        return Relaxed(found, used)

    def ep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> EPResult:
        held = Held(self._draw)
        of_weights, of_biases, of_feedback, free, nudged, used = torch.ops.ceprop_cuda.ep_step(
            *self._parameters(held.read, circuit, x, held),
            held.read("target", self._target(nudge)),
            **settings,
            **_nudge(nudge),
            **dynamics_arguments(circuit),
        )
        held.refuse_changes()
        biases = [None if b is None else of_b for b, of_b in zip(circuit.biases, of_biases, strict=True)]
        gradients = PerParameter(of_weights, biases, of_feedback)
        return EPResult(gradients, logits(circuit, free), free, ops._phases(circuit, nudged), used)

    def cep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> CEPResult:
        held = Held(self._draw)
        shapes = [(len(x), *shape) for shape in state_shapes(circuit, x.shape[2:])]
        phases = 2 + settings["symmetric"]
        written = [held.write(f"states {i}", x.new_empty(shape)) for i, shape in enumerate(shapes * phases)]
        free, nudged = written[: len(shapes)], written[len(shapes) :]
        x_, weights, biases, feedback = self._parameters(held.write, circuit, x, held)
        used = torch.ops.ceprop_cuda.cep_step(
            x_,
            weights,
            biases,
            feedback,
            held.read("target", self._target(nudge)),
            free,
            nudged,
            **settings,
            update=self._update,
            **_nudge(nudge),
            **dynamics_arguments(circuit),
        )
        held.refuse_changes()
        moved = replace(
            circuit,
            weights=weights,
            biases=[None if b is None else m for b, m in zip(circuit.biases, biases, strict=True)],
            free_feedback=None if circuit.free_feedback is None else feedback,
        )
        return CEPResult(moved, logits(circuit, free), free, ops._phases(circuit, nudged), used)

    def _parameters(self, lay: Any, circuit: Circuit, x: Tensor, held: Held) -> tuple[Tensor, list, list, list]:
        def all_of(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
            return [t if t.numel() == 0 else lay(f"{name}[{i}]", t) for i, t in enumerate(tensors)]

        weights, biases, feedback = parameters_of(circuit, x)
        return held.read("x", x), all_of("weights", weights), all_of("biases", biases), all_of("feedback", feedback)

    def _target(self, nudge: Nudge) -> Tensor:
        return _as_labels(self._draw, nudge.target)


def _nudge(nudge: Nudge | None) -> dict[str, Any]:
    if nudge is None:
        return {"beta": 0.0, "nudge_at": "state", "loss": "mse"}
    return {"beta": nudge.beta, "nudge_at": nudge.at, "loss": nudge.loss}


def _as_labels(draw: random.Random, target: Tensor) -> Tensor:
    """``target``, or half the time the classes that it says, if it does."""
    is_one_hot = bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) == 1).all())
    return target.argmax(1) if is_one_hot and draw.random() < 0.5 else target


class PublicAPI:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._update = draw.choice(words(Update))

    def relax(
        self,
        circuit: Circuit,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        nudge: Nudge | None = None,
        tolerance: float | None = None,
    ) -> Relaxed:
        net = network_of(circuit, x)
        nudging: dict[str, Any] = {}
        if nudge is not None:
            target = _as_labels(self._draw, nudge.target)
            nudging = {"target": target, "beta": nudge.beta, "nudge_at": nudge.at, "loss": nudge.loss}
        held = Held(self._draw)
        settings = {"states": states, "backend": "fused", "tolerance": tolerance}
        ran = net.settle(held.read("x", x), steps, **settings, **nudging)
        held.refuse_changes()
        _refuse_moved(circuit, net)
        return ran

    def ep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> EPResult:
        net = network_of(circuit, x)
        rule = cep.EP(net, **_of_rule(nudge, settings))
        ran = rule.backward(x, _as_labels(self._draw, nudge.target))
        _refuse_moved(circuit, net)
        gradients = PerParameter(
            [w.grad for w in net.weights],
            [None if b is None else b.grad for b in net.biases],
            [v.grad for v in net.free_feedback or ()],
        )
        phases = [ran.nudged_states] + [ran.nudged_minus_states] * settings["symmetric"]
        return EPResult(gradients, ran.output, ran.free_states, phases, ran.steps)

    def cep_step(self, circuit: Circuit, x: Tensor, nudge: Nudge, **settings: Any) -> CEPResult:
        net = network_of(circuit, x)
        rule = cep.CEP(net, **_of_rule(nudge, settings), update=self._update)
        ran = rule.step(x, _as_labels(self._draw, nudge.target))
        phases = [ran.nudged_states] + [ran.nudged_minus_states] * settings["symmetric"]
        moved = replace(
            circuit,
            weights=[w.detach() for w in net.weights],
            biases=[None if b is None else b.detach() for b in net.biases],
            free_feedback=None if circuit.free_feedback is None else [v.detach() for v in net.free_feedback or ()],
        )
        return CEPResult(moved, ran.output, ran.free_states, phases, ran.steps)


def _of_rule(nudge: Nudge, settings: dict[str, Any]) -> dict[str, Any]:
    of_rule = {**settings, "nudging": "symmetric" if settings["symmetric"] else "positive", "backend": "fused"}
    del of_rule["symmetric"]
    return {**of_rule, "beta": nudge.beta, "nudge_at": nudge.at, "loss": nudge.loss}


def _refuse_moved(circuit: Circuit, net: cep.Network) -> None:
    if not all(map(torch.equal, circuit.parameters(), net.circuit().parameters())):
        raise Changed("a parameter has moved")


def network_of(circuit: Circuit, x: Tensor) -> cep.Network:
    """A Network with copies of the circuit's parameters, for inputs like ``x``."""
    modules: list[nn.Module] = []
    connections: list[nn.Module] = []
    for layer, (w, b) in enumerate(zip(circuit.weights, circuit.biases, strict=True)):
        made = circuit.structure.connections[layer].convolution
        connection: nn.Module
        if made is None:
            connection = nn.Linear(w.shape[1], w.shape[0], bias=b is not None)
            if layer == len(circuit.structure.convolutions):
                modules.append(nn.Flatten())
            modules.append(connection)
        else:
            connection = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], made.stride, made.padding, bias=b is not None)
            modules.append(connection)
            if made.pool != "none":
                modules.append((nn.MaxPool2d if made.pool == "max" else nn.AvgPool2d)(made.window))
        connections.append(connection)
    d = circuit.dynamics
    net = cep.Network(
        nn.Sequential(*modules),
        tuple(x.shape[1:]),
        activation=d.activation,
        output_activation=None if circuit.structure.has_readout else d.output_activation,
        dynamics=d.kind,
        dt=d.dt,
        clip=d.clip,
        feedback="tied" if circuit.free_feedback is None else "free",
        readout="softmax" if circuit.structure.has_readout else None,
        schedule=d.schedule,
    ).to(x.dtype)
    with torch.no_grad():
        for p, value in zip(net.circuit().parameters(), circuit.parameters(), strict=True):
            p.copy_(value)
    return net


MODULES = {"op": RawOps, "api": PublicAPI}
