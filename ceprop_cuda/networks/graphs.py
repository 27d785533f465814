"""Networks whose layers are joined otherwise than in a chain: which of them there can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain as joined

from torch import nn

from ..arguments.checks import shown
from ..spec.connections import INPUT, Connection, Convolution, Structure, chain
from .layout import (
    POOLINGS,
    Layout,
    above_convolution,
    above_linear,
    above_pooling,
    built,
    refuse_hooks,
    refuse_shared_parameters,
)

INPUT_NAME = "input"
Shape = tuple[int, ...]


class Graph(nn.ModuleList):
    """The modules of connections, and which layers they join.

    Args:
        connections: ``(below, above, module)``; see :func:`ceprop_cuda.graph`.
        output: the layer that is nudged.
        turns: lists of the layers that move together within a step; None: as the schedule says.

    Raises:
        TypeError, ValueError: the layers cannot be joined so; the message names the connection or the layer.
    """

    def __init__(
        self,
        connections: Sequence[tuple[str, str, nn.Module]],
        output: str,
        turns: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(connections, (list, tuple)) or not connections:
            raise TypeError(f"connections must be a list of (below, above, module), got {shown(connections)}")
        for place, connection in enumerate(connections):
            _refuse_no_connection(f"connections[{place}]", connection)
        self.ends = tuple((below, above) for below, above, _ in connections)
        # In order of first appearance.
        self.layers = tuple(name for name in dict.fromkeys(joined.from_iterable(self.ends)) if name != INPUT_NAME)
        self.output = output
        _refuse_no_layer("output", output, self.layers)
        for place in range(len(connections)):
            _refuse_ends(self.where(place), *self.ends[place], output)
        _refuse_loose_layers(self.ends, self.layers, output)
        _refuse_rings(self.ends, self.layers)
        self.turns = None if turns is None else _turns(turns, self.layers)
        self.extend(module for _, _, module in connections)

    def where(self, place: int) -> str:
        """The words for a connection."""
        return f"connections[{place}] ({' -> '.join(map(repr, self.ends[place]))})"

    def description(self) -> str:
        turns = "" if self.turns is None else f", turns={[list(turn) for turn in self.turns]}"
        ends = ", ".join(f"{below} -> {above}" for below, above in self.ends)
        return f"connections=[{ends}], output={self.output!r}{turns}"


def graph_of(model: Graph, input_shape: Shape) -> Layout:
    """The connections of ``model``, of which each fits what is below it, and all that end at a layer fit each other.

    TypeError or ValueError, naming the connection, if a module is not supported or does not fit.
    """
    refuse_hooks(model, "model")
    shapes: dict[str, Shape] = {INPUT_NAME: input_shape}
    by: dict[str, str] = {}  # of each layer, the connection that gave it its shape
    modules: dict[int, nn.Conv2d | nn.Linear] = {}
    made: dict[int, Convolution | None] = {}
    while len(modules) < len(model):
        for place, ((below, above), module) in enumerate(zip(model.ends, model, strict=True)):
            if place in modules or below not in shapes:
                continue
            where = model.where(place)
            modules[place], made[place], shape = _made(module, where, shapes[below])
            if shapes.setdefault(above, shape) != shape:
                raise ValueError(
                    f"{where} gives states of shape {shape}, but {by[above]} gives {shapes[above]}: all connections "
                    "that end at a layer must give one shape"
                )
            by.setdefault(above, where)
    if len(shapes[model.output]) != 1:
        raise ValueError(
            f"{by[model.output]} ends at the output, so it must be an nn.Linear, got states of shape "
            f"{shapes[model.output]}"
        )
    named = [(model.where(place), modules[place]) for place in range(len(model))]
    refuse_shared_parameters(named)
    numbers = {INPUT_NAME: INPUT} | {name: number for number, name in enumerate(model.layers)}
    structure = Structure(
        tuple(Connection(numbers[b], numbers[a], made[place]) for place, (b, a) in enumerate(model.ends)),
        numbers[model.output],
        None if model.turns is None else tuple(tuple(numbers[name] for name in turn) for turn in model.turns),
    )
    convolutions = tuple(c for c in (made[place] for place in range(len(model))) if c is not None)
    if structure == (of_chain := chain(len(model), convolutions)):
        structure = of_chain  # which says that it is one
    return Layout(
        [module for _, module in named],
        built([("model", model), *_all_parts(model)]),
        structure,
        names=model.layers,
    )


def _all_parts(model: Graph) -> list[tuple[str, nn.Module]]:
    """Every module with the words for where it is; after a Sequential those within it."""
    parts: list[tuple[str, nn.Module]] = []
    for place, module in enumerate(model):
        where = model.where(place)
        parts.append((where, module))
        if isinstance(module, nn.Sequential):
            parts += [(f"{where}[{position}]", part) for position, part in enumerate(module)]
    return parts


def _made(module: nn.Module, where: str, below: Shape) -> tuple[nn.Conv2d | nn.Linear, Convolution | None, Shape]:
    """The module that holds the parameters, how it is made if it is a convolution, and the shape of the state above."""
    refuse_hooks(module, where)
    if type(module) is nn.Linear:
        return module, None, above_linear(module, where, math.prod(below))
    if type(module) is nn.Conv2d:
        return module, *above_convolution(module, where, below)
    if type(module) is nn.Sequential and len(module) == 2:
        convolution, pooling = module
        for position, part in enumerate(module):
            refuse_hooks(part, f"{where}[{position}]")
        if type(convolution) is nn.Conv2d and isinstance(pooling, POOLINGS) and type(pooling) in POOLINGS:
            made, shape = above_convolution(convolution, where, below)
            return convolution, *above_pooling(pooling, where, made, shape)
    raise TypeError(
        f"{where} is {shown(module)}: a connection is an nn.Linear, an nn.Conv2d, or an nn.Sequential of an nn.Conv2d "
        "and an nn.MaxPool2d or nn.AvgPool2d; activations are set by activation= and output_activation="
    )


def _refuse_no_connection(where: str, connection: object) -> None:
    if not isinstance(connection, (list, tuple)) or len(connection) != 3:
        raise TypeError(f"{where} must be (below, above, module), got {shown(connection)}")
    for what, name in zip(("below", "above"), connection, strict=False):
        if not isinstance(name, str) or not name:
            raise TypeError(f"{what} of {where} must be the name of a layer, got {shown(name)}")
    if not isinstance(connection[2], nn.Module):
        raise TypeError(f"the module of {where} must be an nn.Module, got {shown(connection[2])}")


def _refuse_ends(where: str, below: str, above: str, output: str) -> None:
    if above == INPUT_NAME:
        raise ValueError(f"{where} ends at the input, which no connection can move")
    if below == above:
        raise ValueError(f"{where} joins layer {below!r} to itself")
    if below == output:
        raise ValueError(f"{where} starts at the output: connections can only end there")


def _refuse_no_layer(what: str, name: object, layers: Sequence[str]) -> None:
    if not isinstance(name, str) or name not in layers:
        raise ValueError(f"{what} must be one of the layers {', '.join(map(repr, layers))}, got {shown(name)}")


def _refuse_loose_layers(ends: Sequence[tuple[str, str]], layers: Sequence[str], output: str) -> None:
    """Unless signals go from the input through every layer to the output."""
    backwards = [(above, below) for below, above in ends]
    from_input, to_output = _reached(INPUT_NAME, ends), _reached(output, backwards)
    for name in layers:
        if name not in from_input:
            raise ValueError(f"layer {name!r} has no way from the input: no path of connections leads to it")
        if name not in to_output:
            raise ValueError(f"layer {name!r} has no way to the output {output!r}: no path of connections leads there")


def _reached(start: str, ends: Sequence[tuple[str, str]]) -> set[str]:
    reached, grows = {start}, True
    while grows:
        more = {above for below, above in ends if below in reached} - reached
        reached |= more
        grows = bool(more)
    return reached


def _refuse_rings(ends: Sequence[tuple[str, str]], layers: Sequence[str]) -> None:
    rest = set(layers)
    while free := rest - {above for below, above in ends if below in rest}:
        rest -= free
    for place, (below, above) in enumerate(ends):
        if below in rest and below in _reached(above, ends):
            raise ValueError(
                f"connections[{place}] ({below!r} -> {above!r}) closes a ring, in which no layer comes first: turn it "
                "around, as connections act both ways"
            )


def _turns(turns: object, layers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, (list, tuple)) for turn in turns):
        raise TypeError(f"turns must be lists of layers, got {shown(turns)}")
    seen: set[str] = set()
    for name in joined.from_iterable(turns):
        _refuse_no_layer("every name in turns", name, layers)
        if name in seen:
            raise ValueError(f"turns names layer {name!r} twice: a layer moves once in a step")
        seen.add(name)
    left_out = [name for name in layers if name not in seen]
    if left_out:
        raise ValueError(f"turns leaves out layer {left_out[0]!r}: every layer moves once in a step")
    return tuple(tuple(turn) for turn in turns)
