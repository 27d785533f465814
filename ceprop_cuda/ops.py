"""The kernels, with the signatures of their specification in ``reference.py``.

The ops themselves are ``torch.ops.ceprop_cuda.{relax, ep_step, cep_step, learn}``; ``csrc/library.cpp`` holds their
contracts. Every function takes ``engine``, what computes the call: "fused", the fused kernels of a CPU, which take
chains of layers; "teams", those of a GPU, in which teams of blocks own samples or units, chains of dense layers in one
launch, of chains with convolutions the phases in which weights rest in a launch each; "graph", PyTorch's operators
around kernels of this library, which take any network and on a GPU are recorded in a CUDA graph; or "auto", the
device's fused kernels where they can run, else PyTorch's operators. Forced engines are for tests and measurements.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Asked before the import: an editable installation would find the library of its own folder for these sources.
if not any(Path(__file__).with_name(f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
    raise ImportError(
        f"{Path(__file__).parent} has no compiled library: it shadows the installed ceprop_cuda, if there is one, so "
        f"leave {Path(__file__).parents[1]}, or build here with `pip install --no-build-isolation -e .`"
    )

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"ceprop_cuda's compiled library does not load ({error}). Build it for this torch "
        f"({torch.__version__}) with `pip install --no-build-isolation .` in the source folder"
    ) from error

from .op_arguments import dynamics_arguments, nudge_arguments, parameters_of
from .spec.dynamics import Circuit, Nudge, logits, state_shapes
from .spec.reference import CEPResult, EPResult, PerParameter, Relaxed
from .tracing import new_states


def build_info() -> dict[str, str]:
    """What the library was built for and which kernels it runs, by name."""
    return _C.build_info()


def obstacle(
    circuit: Circuit, x: Tensor, precision: str = "exact", gate: str | None = None, engine: str = "auto"
) -> str | None:
    """Why no kernels of this engine take this input in this precision, or learn from it with this gate, or None if some
    do."""
    if not torch.compiler.is_compiling() and _is_transformed():
        return "transforms of torch.func and forward-mode derivatives do not reach into the fused kernels"
    if x.dtype not in (torch.float32, torch.float64):
        return f"the fused kernels take float32 and float64, got {x.dtype}"
    device = x.device.type
    if device == "cuda" and not hasattr(_C, "cuda_device"):
        return "this library was built without CUDA"
    if device not in ("cpu", "cuda"):
        return f"there is no fused kernel for device type {device!r}"
    if device == "cpu" and precision != "exact":
        return f"precision={precision!r} is CUDA's, got a tensor on the CPU"
    if engine == "teams":
        reason = _team_obstacle(circuit, x, precision)
        return None if reason is None else f"engine='teams' is for teams of a GPU's blocks, and {reason}"
    if engine == "fused":
        reason = _fused_obstacle(circuit, x, gate)
        return None if reason is None else f"engine='fused' is for the fused kernels of a CPU, and {reason}"
    if device == "cuda" and precision == "tf32":
        return _tf32_obstacle(x)
    return None


def _fused_obstacle(circuit: Circuit, x: Tensor, gate: str | None) -> str | None:
    """Why the fused kernels of a CPU cannot take this."""
    if x.is_cuda:
        return "this tensor is on a GPU"
    if not circuit.structure.is_chain:
        return "they take chains of layers, this network is a graph"
    if gate is not None and circuit.structure.convolutions:
        return f"only those for dense layers have a gate, got gate={gate!r}"
    return None


def _team_obstacle(circuit: Circuit, x: Tensor, precision: str) -> str | None:
    """Why no team takes this network. What it does not run of an op the op itself refuses."""
    if not x.is_cuda:
        return "this tensor is on the CPU"
    if not circuit.structure.is_chain or circuit.structure.has_readout:
        return "they take chains of layers without a readout"
    if precision != "exact":
        return f"they have precision 'exact' alone, got {precision!r}"
    return _no_team(**team_settings(circuit, x, continual=False, tolerance=False))


def team_settings(circuit: Circuit, x: Tensor, continual: bool, tolerance: bool) -> dict[str, Any]:
    settings = {
        "index": x.device.index,
        "asynchronous": circuit.dynamics.schedule == "asynchronous",
        "batch": len(x),
        "number_bytes": x.element_size(),
    }
    made = circuit.structure.convolutions
    if not made:
        widths = (x.shape[1], *(w.shape[0] for w in circuit.weights))
        return settings | {"widths": widths, "continual": continual, "tolerance": tolerance}
    shapes = [tuple(x.shape[1:]), *state_shapes(circuit, x.shape[2:])]
    return settings | {
        "maps": tuple((*shape, 1, 1)[:3] for shape in shapes),
        "convolutions": tuple(
            (*w.shape[2:], *c.stride, *c.padding, *((1, 1) if c.pool == "none" else c.window))
            for c, w in zip(made, circuit.weights, strict=False)
        ),
        "pools": tuple(c.pool for c in made),
        "readout": False,
        "free_feedback": circuit.free_feedback is not None,
    }


def _team_plan(index: int, **settings: Any) -> dict[str, Any]:
    device: dict[str, Any] = dict(_C.cuda_device(index))
    return (_C.map_plan if "maps" in settings else _C.launch_plan)(**device, **settings)


@functools.lru_cache(maxsize=256)  # asked before every call
def _no_team(**settings: Any) -> str | None:
    try:
        _team_plan(**settings)
    except ValueError as error:
        return str(error)
    return None


def _tf32_obstacle(x: Tensor) -> str | None:
    if x.dtype == torch.float32 and torch.cuda.get_device_capability(x.device)[0] >= 8:
        return None
    return "precision='tf32' takes float32 on a GPU of compute capability 8.0 or more"


def launch_plan(
    circuit: Circuit,
    x: Tensor,
    *,
    precision: str = "exact",
    engine: str = "auto",
    continual: bool = False,
    tolerance: bool = False,
) -> dict[str, Any]:
    """How a call without a gate runs on x's CUDA device, ``continual`` for continual EP: by "engine" "teams", and then
    by which teams (see plan.h in csrc/cuda/teams; where there are convolutions, in csrc/cuda/maps), or by "graph".

    Raises:
        ValueError: it cannot run, or not by ``engine``.
    """
    if (reason := obstacle(circuit, x, precision, engine=engine)) is not None:
        raise ValueError(reason)
    if engine != "graph" and _team_obstacle(circuit, x, precision) is None:
        try:
            return {"engine": "teams", **_team_plan(**team_settings(circuit, x, continual, tolerance))}
        except ValueError:
            if engine == "teams":
                raise
    return {"engine": "graph"}


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def relax(
    circuit: Circuit,
    x: Tensor,
    steps: int,
    states: Sequence[Tensor] | None = None,
    nudge: Nudge | None = None,
    tolerance: float | None = None,
    precision: str = "exact",
    engine: str = "auto",
) -> Relaxed:
    """See :func:`ceprop_cuda.spec.reference.relax`; ``precision`` as for :class:`ceprop_cuda.EP`."""
    after, steps_used = _call(
        "relax",
        x,
        *parameters_of(circuit, x),
        list(states or []),
        None if nudge is None else nudge.target,
        steps=steps,
        tolerance=tolerance,
        beta=0.0 if nudge is None else nudge.beta,
        nudge_at="state" if nudge is None else nudge.at,
        loss="mse" if nudge is None else nudge.loss,
        **dynamics_arguments(circuit),
        precision=precision,
        engine=engine,
    )
    return Relaxed(after, steps_used)


def ep_step(
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
    precision: str = "exact",
    engine: str = "auto",
) -> EPResult:
    """See :func:`ceprop_cuda.spec.reference.ep_step`; ``precision`` as for :class:`ceprop_cuda.EP`."""
    of_weights, of_biases, of_feedback, free, nudged, steps_used = _call(
        "ep_step",
        x,
        *parameters_of(circuit, x),
        nudge.target,
        free_steps=free_steps,
        nudged_steps=nudged_steps,
        tolerance=tolerance,
        symmetric=symmetric,
        accumulate=accumulate,
        shared_update=shared_update,
        gate=gate or "none",
        **nudge_arguments(nudge),
        **dynamics_arguments(circuit),
        precision=precision,
        engine=engine,
    )
    biases = [None if b is None else of_b for b, of_b in zip(circuit.biases, of_biases, strict=True)]
    gradients = PerParameter(of_weights, biases, of_feedback)
    return EPResult(gradients, logits(circuit, free), free, _phases(circuit, nudged), steps_used)


def cep_step(
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
    update: str = "auto",
    precision: str = "exact",
    engine: str = "auto",
) -> CEPResult:
    """See :func:`ceprop_cuda.spec.reference.cep_step`; but the parameters of ``circuit`` move in place.

    ``update`` and ``precision`` as for :class:`ceprop_cuda.CEP`.
    """
    before = with_own_readout(circuit)
    shapes = state_shapes(circuit, x.shape[2:])
    new = new_states if torch.compiler.is_compiling() else _C.new_states
    states = new(x, shapes, 2 + symmetric)
    free, nudged = states[: len(shapes)], states[len(shapes) :]
    steps_used = _call(
        "cep_step",
        x,
        *parameters_of(circuit, x),
        nudge.target,
        free,
        nudged,
        free_steps=free_steps,
        nudged_steps=nudged_steps,
        tolerance=tolerance,
        lr=list(lr),
        symmetric=symmetric,
        shared_update=shared_update,
        weight_decay=weight_decay,
        update=update,
        gate=gate or "none",
        **nudge_arguments(nudge),
        **dynamics_arguments(circuit),
        precision=precision,
        engine=engine,
    )
    return CEPResult(circuit, logits(before, free), free, _phases(circuit, nudged), steps_used)


class LearnedMany(NamedTuple):
    """What :func:`learn` found out, of R networks and N batches."""

    loss: Tensor  # (R, N) float64, of the free phases, mean over a batch
    wrong: Tensor  # (R, N) int64
    steps: Tensor  # (R, N, phases) int64
    learned: Tensor  # (R,) int64: from how many batches each has learned
    states: list[list[list[Tensor]]]  # by network and phase, of the last batch: free, nudged, when symmetric -beta's


def learn(
    circuits: Sequence[Circuit],
    x: Tensor,
    target: Tensor,
    orders: Tensor,
    *,
    betas: Tensor,
    rates: Tensor,
    values: Tensor | None,
    continual: bool,
    nudge_at: str,
    loss: str,
    free_steps: int,
    nudged_steps: int,
    weight_decay: Sequence[float],
    momentum: Sequence[float],
    momenta: Sequence[Tensor] = (),
    tolerance: float | None = None,
    symmetric: bool = False,
    accumulate: bool = False,
    shared_update: bool = False,
    gate: str | None = None,
    update: str = "auto",
    precision: str = "exact",
    engine: str = "auto",
) -> LearnedMany:
    """Learn with R networks of one shape from N batches each, in place: by continual EP, or by EP and SGD.

    Args:
        x: the data set, ``(S, *input)``, floats or bytes; ``target``: ``(S,)`` int64 or ``(S, classes)``.
        orders: ``(R, N, B)`` int64, numbers of samples.
        betas: ``(R, N)`` float64;  rates: ``(R, N, connections)`` float64.
        values: of bytes, ``(channels, 256)``: what each stands for.
        momenta: with a momentum, like the weights, biases and feedback weights of each network.
    """
    lists = [parameters_of(circuit, circuit.weights[0]) for circuit in circuits]
    loss_of_batches, wrong, steps, learned, states = _call(
        "learn",
        x,
        target,
        orders,
        betas,
        rates,
        values,
        *([tensor for of in kind for tensor in of] for kind in zip(*lists, strict=True)),
        list(momenta),
        continual=continual,
        free_steps=free_steps,
        nudged_steps=nudged_steps,
        tolerance=tolerance,
        nudge_at=nudge_at,
        loss=loss,
        symmetric=symmetric,
        accumulate=accumulate,
        shared_update=shared_update,
        weight_decay=list(weight_decay),
        momentum=list(momentum),
        update=update,
        gate=gate or "none",
        **dynamics_arguments(circuits[0]),
        precision=precision,
        engine=engine,
    )
    phases = _phases(circuits[0], states)
    each = len(phases) // len(circuits)
    by_network = [phases[first : first + each] for first in range(0, len(phases), each)]
    return LearnedMany(loss_of_batches, wrong, steps, learned, by_network)


def many_obstacle(circuit: Circuit, x: Tensor, gate: str | None = None, engine: str = "auto") -> str | None:
    """Why no kernels learn from many batches in one call, of an input that :func:`obstacle` has nothing against; None
    if some do."""
    if torch.compiler.is_compiling():
        return "torch.compile traces single steps"
    return f"engine={engine!r} takes one batch a call" if engine == "graph" else _fused_obstacle(circuit, x, gate)


def check_writable(circuit: Circuit) -> None:
    """ValueError if parameters share memory, which :func:`cep_step` could not change in place."""
    none = circuit.weights[0].new_empty(0)
    biases = [none if b is None else b for b in circuit.biases]
    _C.check_writable(circuit.weights, biases, circuit.free_feedback or [])


def with_own_readout(circuit: Circuit) -> Circuit:
    """``circuit`` with a copy of its readout, if it has one: the op moves the original."""
    if not circuit.structure.has_readout:
        return circuit
    c = circuit.biases[-1]
    return replace(
        circuit,
        weights=[*circuit.weights[:-1], circuit.weights[-1].clone()],
        biases=[*circuit.biases[:-1], None if c is None else c.clone()],
    )


# By op, its settings in the order of its schema.
_SETTINGS = {
    name: itemgetter(
        *(each.name for each in getattr(torch.ops.ceprop_cuda, name).default._schema.arguments if each.kwarg_only)
    )
    for name in ("relax", "ep_step", "cep_step", "learn")
}


def _call(name: str, *tensors: Any, **settings: Any) -> Any:
    """The op of this name: for torch.compile that of ``torch.ops``, else by the library's own way to it, see
    ``csrc/eager_ops.cpp``."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.ceprop_cuda, name)(*tensors, **settings)
    return getattr(_C, name)(*tensors, *_SETTINGS[name](settings))


def _phases(circuit: Circuit, nudged: list[Tensor]) -> list[list[Tensor]]:
    """The op's flat list of states, a list per nudged phase."""
    return [nudged[first : first + circuit.layers] for first in range(0, len(nudged), circuit.layers)]
