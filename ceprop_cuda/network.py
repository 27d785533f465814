"""An ordinary ``nn.Sequential`` seen as a convergent network."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from numbers import Integral, Real
from types import ModuleType
from typing import Literal, overload

import torch
from torch import Tensor, nn

from . import ops
from .chain import chain_of, refuse_changes
from .checks import one_of, real_number, shown, tolerance_or_none, whole_number
from .spec import reference
from .spec.dynamics import ACTIVATIONS, SCHEDULES, Circuit, Dynamics, Nudge, state_shapes

log = logging.getLogger("ceprop_cuda")

BACKENDS = ("auto", "fused", "reference")
PRECISIONS = ("exact", "tf32", "bf16")


def exact(x: Tensor) -> AbstractContextManager[object]:
    """Where the library computes: in its parameters' dtype, whatever autocast says."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class FusedUnavailable(RuntimeError):
    """``backend="fused"`` was asked for, and the kernels cannot take this network or input."""


@cache
def say_once(level: int, message: str) -> None:
    log.log(level, message)


def report(level: int, message: str) -> None:
    """Say ``message`` once in the log; nothing while torch.compile traces, which cannot take logging."""
    if not torch.compiler.is_compiling():
        say_once(level, message)


def backend_module(backend: str, circuit: Circuit, x: Tensor, **of_kernels: str) -> tuple[ModuleType, dict[str, str]]:
    """The module whose ``relax``, ``ep_step`` and ``cep_step`` do the work, ``ops`` or ``reference``; and the settings
    of the kernels that its functions take: all, or none.

    Raises FusedUnavailable if ``backend`` is "fused" and the kernels cannot take this network or input.
    """
    if backend == "reference":
        return reference, {}
    obstacle = ops.obstacle(circuit, x, of_kernels["precision"])
    if obstacle is None:
        report(logging.INFO, f"running the fused kernels on {x.device.type}")
        return ops, of_kernels
    if backend == "fused":
        raise FusedUnavailable(f"backend='fused' cannot run this: {obstacle}; use backend='auto' or 'reference'")
    report(logging.WARNING, f"backend='auto' runs the slow reference: {obstacle}")
    return reference, {}


class Network(nn.Module):
    """A chain of layers that settles to a fixed point, around a torch model whose Parameters it shares.

    Args:
        model: ``nn.Sequential`` of any number of ``nn.Conv2d``, each followed by an ``nn.MaxPool2d``, an
            ``nn.AvgPool2d`` or none, then an ``nn.Flatten`` and at least one ``nn.Linear``. A layer's state is what
            comes after the pooling.
        input_shape: shape of one sample, e.g. ``(784,)``, or ``(1, 28, 28)`` where a Conv2d or an nn.Flatten leads.
        activation: of the hidden units: "sigmoid" 1/(1+exp(-4(x-1/2))), "hard_sigmoid" clip(x, 0, 1),
            "half_hard_sigmoid" clip(x/2, 0, 1), "centered_hard_sigmoid" clip(x, -1/2, 1/2), "tanh" or "linear".
        output_activation: of the output units; None: the same. With a readout there are none.
        dynamics: "prototypical", s <- rho(a) (arXiv 1905.13633, section 3), or "energy",
            s <- clip(s + dt (-s + rho'(s) a)), without rho' at the output and with free feedback. The drive a comes
            from the states of the layers below and above, in energy dynamics from rho of them; a nudge adds
            beta (y - s) to the output units, in energy dynamics dt times as much.
        dt: step size of the energy dynamics.
        clip: whether the energy dynamics keep states in [0, 1].
        feedback: "tied", layer l reaches layer l-1 through W[l]^T, or "free", through a Parameter V[l] of its own
            (a vector field, 2005.04168).
        readout: None, the last Linear drives the output units, or "softmax", it reads the top layer's states out
            without acting on them but by the nudge (2006.03824).
        free_steps: steps that ``forward`` relaxes for. Building a learning rule sets it to the rule's.
        schedule: "synchronous", all layers move at once, or "asynchronous" (2312.15103), every step first moves the
            layers 0, 2, ... at once, then the layers 1, 3, ... from the newest states of their neighbours: the same
            fixed points in about half the steps, each of which costs the same.

    Raises:
        TypeError: ``model`` is no chain of supported modules; the message names the module.
        ValueError: sizes do not fit together, or a setting is none of the choices.
    """

    def __init__(
        self,
        model: nn.Sequential,
        input_shape: Sequence[int],
        *,
        activation: str = "sigmoid",
        output_activation: str | None = None,
        dynamics: str = "prototypical",
        dt: float = 0.2,
        clip: bool = True,
        feedback: str = "tied",
        readout: str | None = None,
        free_steps: int = 50,
        schedule: str = "synchronous",
    ) -> None:
        super().__init__()
        if readout is not None and output_activation is not None:
            raise ValueError(f"output_activation must be None with a readout, got {shown(output_activation)}")
        output_activation = activation if output_activation is None else output_activation
        one_of("activation", activation, ACTIVATIONS)
        one_of("output_activation", output_activation, ACTIVATIONS)
        one_of("dynamics", dynamics, ("prototypical", "energy"))
        clip = one_of("clip", clip, (True, False))
        one_of("feedback", feedback, ("tied", "free"))
        one_of("readout", readout, (None, "softmax"))
        one_of("schedule", schedule, SCHEDULES)
        dt = real_number("dt", dt, lambda value: value > 0, "a finite number > 0")
        self.free_steps = whole_number("free_steps", free_steps, 0)
        shape = [input_shape] if isinstance(input_shape, Integral) else input_shape
        self.input_shape = tuple(whole_number("input_shape", size, 1) for size in shape)
        self.dynamics = Dynamics(activation, output_activation, dynamics, dt, clip, schedule)
        self.readout = readout
        chain = chain_of(model, self.input_shape)
        self.model = model
        self._chain = chain
        if readout is not None and len(chain.modules) < 2:
            raise ValueError("readout='softmax' needs a layer below the readout, got a model with 1 Linear")
        self.free_feedback: nn.ParameterList | None = None
        if feedback == "free":
            self.free_feedback = nn.ParameterList(_fresh_like(w) for w in self.weights[1 : self.layers])

    @property
    def _connections(self) -> list[nn.Conv2d | nn.Linear]:
        return self._chain.modules

    @property
    def layers(self) -> int:
        """Number of layers with states; a readout is none."""
        return len(self._chain.modules) - (self.readout is not None)

    @property
    def classes(self) -> int:
        """Number of output units, or of the readout's classes."""
        return self.weights[-1].shape[0]

    @property
    def weights(self) -> list[Tensor]:
        """W[l] ``(n_l, n_{l-1})``, of a convolution ``(n_l, n_{l-1}, kernel height, width)``, input side first; with a
        readout R ``(classes, n_{L-1})`` comes last."""
        return [module.weight for module in self._connections]

    @property
    def biases(self) -> list[Tensor | None]:
        """b[l] ``(n_l,)``, input side first; None where the module has no bias."""
        return [module.bias for module in self._connections]

    @property
    def feedback(self) -> list[Tensor | None]:
        """V[l], shaped like W[l]; None for l = 0, for tied connections and for a readout."""
        free = [None] * (self.layers - 1) if self.free_feedback is None else list(self.free_feedback)
        return [None, *free] + [None] * (self.readout is not None)

    def circuit(self) -> Circuit:
        """The parameters as the kernels and the reference take them; the tensors are shared, not copied.

        Raises TypeError if the model is no longer as it was when the Network was made.
        """
        if not torch.compiler.is_compiling():
            refuse_changes(self.model, self._chain)
        free = None if self.free_feedback is None else list(self.free_feedback)
        modules = self._connections
        weights: list[Tensor] = [module.weight for module in modules]
        biases = [module.bias for module in modules]
        return Circuit(weights, biases, free, self.dynamics, self.readout is not None, self._chain.convolutions)

    @overload
    def relax(
        self,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        nudge_at: str | None = None,
        loss: str | None = None,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        return_steps: Literal[False] = False,
        precision: str = "exact",
    ) -> list[Tensor]: ...

    @overload
    def relax(
        self,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        nudge_at: str | None = None,
        loss: str | None = None,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        return_steps: Literal[True],
        precision: str = "exact",
    ) -> tuple[list[Tensor], Tensor]: ...

    def relax(
        self,
        x: Tensor,
        steps: int,
        states: Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        nudge_at: str | None = None,
        loss: str | None = None,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        return_steps: bool = False,
        precision: str = "exact",
    ) -> list[Tensor] | tuple[list[Tensor], Tensor]:
        """The layers' states after ``steps`` steps, ``(B, n_l)`` each, of convolutions ``(B, C, H, W)`` after the
        pooling.

        Args:
            x: ``(B, *input_shape)``.
            steps: number of steps, at least 0; ``tolerance`` may end them before.
            states: of every layer, what to start from (default: zeros).
            target: None for a free phase; class indices ``(B,)`` int64 or float targets ``(B, classes)`` for a nudged
                one of strength ``beta`` (may be negative, not 0).
            nudge_at, loss: as for :class:`ceprop_cuda.EP`.
            backend: "auto", "fused" or "reference"; only the reference is differentiable.
            tolerance: None, or stop already after 4, 8, 12, ... steps if the last of them moved no unit of any sample
                by more than this. 0 stops only where further steps would change nothing.
            return_steps: return ``(states, number of steps made)``, the latter a 0-d int64 tensor.
            precision: as for :class:`ceprop_cuda.EP`.

        Raises:
            ValueError, TypeError: a shape, dtype, device or setting does not fit; nothing was computed.
            RuntimeError: ``backend="fused"`` cannot run this.
        """
        one_of("backend", backend, BACKENDS)
        return_steps = one_of("return_steps", return_steps, (True, False))
        one_of("precision", precision, PRECISIONS)
        steps = whole_number("steps", steps, 0)
        tolerance = tolerance_or_none(tolerance)
        circuit = self.circuit()
        x = self.check_input(circuit, x)
        if states is not None:
            self._check_states(x, states)
        nudge = None
        if target is not None:
            wanted = "a finite number other than 0 when there is a target"
            beta = real_number("beta", beta, lambda value: value != 0, wanted)
            nudge_at, loss = self.nudging_point(nudge_at, loss)
            nudge = Nudge(self.check_target(circuit, x, target), beta, nudge_at, loss)
        elif not isinstance(beta, Real) or beta != 0:
            raise ValueError(f"beta must be 0 without a target, got {shown(beta)}; pass target= to nudge")
        module, of_kernels = backend_module(backend, circuit, x, precision=precision)
        with exact(x):
            ran = module.relax(circuit, x, steps, states, nudge, tolerance, **of_kernels)
        return (ran.states, ran.steps.squeeze(0)) if return_steps else ran.states

    def forward(self, x: Tensor) -> Tensor:
        """Output units or readout logits ``(B, classes)`` after ``free_steps`` free steps; x ``(B, *input_shape)``."""
        states = self.relax(x, self.free_steps)
        with exact(x):
            return reference.logits(self.circuit(), states)

    @torch.no_grad()
    def angles(self) -> list[float]:
        """Degrees between W[l] and V[l], l = 1 .. L-1; 0 everywhere when tied."""
        result = []
        for weight, feedback in zip(self.weights[1 : self.layers], self.feedback[1 : self.layers], strict=True):
            if feedback is None:
                result.append(0.0)
                continue
            cosine = torch.nn.functional.cosine_similarity(
                weight.flatten().double(), feedback.flatten().double(), dim=0
            )
            result.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine.item())))))
        return result

    @torch.no_grad()
    def set_angle(self, degrees: float) -> None:
        """V[l] <- W[l] with each sign flipped with probability (1 - cos) / 2, for an angle of about ``degrees``
        (2005.04168). Draws from torch's global generator. Raises ValueError when tied or outside [0, 180]."""
        real_number("degrees", degrees, lambda value: 0 <= value <= 180, "a number of degrees in [0, 180]")
        if self.free_feedback is None:
            raise ValueError("set_angle needs feedback='free', got a network with tied feedback")
        flip = (1 - math.cos(math.radians(degrees))) / 2
        for weight, v in zip(self.weights[1 : self.layers], self.free_feedback, strict=True):
            signs = 1 - 2 * (torch.rand(weight.shape, device="cpu") < flip).to(weight)
            v.copy_(weight * signs)

    def nudging_point(self, nudge_at: str | None, loss: str | None) -> tuple[str, str]:
        """``nudge_at`` and ``loss`` with their defaults filled in; ValueError if the network cannot be nudged so."""
        if self.readout is not None:
            nudge_at = one_of("nudge_at of a network with a readout", nudge_at, (None, "drive"))
            loss = one_of("loss of a network with a readout", loss, (None, "cross_entropy"))
            return nudge_at or "drive", loss or "cross_entropy"
        nudge_at = one_of("nudge_at", nudge_at, (None, "state", "drive")) or "state"
        loss = one_of("loss", loss, (None, "mse", "cross_entropy")) or "mse"
        linear = self.dynamics.output_activation == "linear"
        if loss == "cross_entropy" and not linear:
            raise ValueError(
                "loss='cross_entropy' needs output_activation='linear' or readout='softmax', got "
                f"output_activation={self.dynamics.output_activation!r}"
            )
        return nudge_at, loss

    def check_input(self, circuit: Circuit, x: Tensor) -> Tensor:
        """``x`` as ``(B, n_in)``; ValueError or TypeError if shape, dtype or device do not fit ``self.circuit()``."""
        weight = circuit.weights[0]
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.layout != torch.strided:
            raise TypeError(f"x must be a dense tensor, got one of layout {x.layout}: give x.to_dense()")
        # A leading Flatten takes flat samples as well as shaped ones.
        is_flat_on_one_side = self._chain.flattens_input and (x.ndim == 2 or len(self.input_shape) == 1)
        fits = tuple(x.shape[1:]) == self.input_shape or (
            is_flat_on_one_side and x.ndim >= 2 and math.prod(x.shape[1:]) == weight.shape[1]
        )
        if not fits or x.shape[0] < 1:
            wanted = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must be (B, {wanted}) with B >= 1, got {tuple(x.shape)}")
        if x.dtype != weight.dtype:
            raise TypeError(f"x must be {weight.dtype} like the network's weights, got {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"x must be on {weight.device} like the network's weights, got {x.device}")
        odd = next((p for p in circuit.parameters() if p.dtype != x.dtype or p.device != x.device), None)
        if odd is not None:
            raise TypeError(f"all parameters must be {x.dtype} on {x.device}, got one of {odd.dtype} on {odd.device}")
        return x if self._chain.convolutions else x.flatten(1)

    def check_target(self, circuit: Circuit, x: Tensor, target: Tensor) -> Tensor:
        """``target`` as ``(B, classes)`` in x's dtype; ValueError or TypeError if it does not fit."""
        classes, batch = circuit.weights[-1].shape[0], x.shape[0]
        wanted = f"class indices ({batch},) int64 or float targets ({batch}, {classes})"
        if not isinstance(target, Tensor):
            raise TypeError(f"the target must be {wanted}, got {type(target).__name__}")
        if target.layout != torch.strided:
            raise TypeError(f"the target must be a dense tensor, got one of layout {target.layout}: give .to_dense()")
        got = f"{tuple(target.shape)} {target.dtype}"
        if target.device != x.device:
            raise ValueError(f"the target must be on {x.device} like x, got {target.device}")
        if tuple(target.shape) not in ((batch,), (batch, classes)):
            raise ValueError(f"the target must be {wanted}, got {got}")
        if target.ndim == 2:
            if not target.is_floating_point():
                raise TypeError(f"the target must be {wanted}, got {got}")
            return target.to(x.dtype)
        if target.dtype != torch.int64:
            raise TypeError(f"the target must be {wanted}, got {got}")
        if target.is_cuda:  # reading a number would wait for the device
            torch._assert_async(
                ((target >= 0) & (target < classes)).all(), f"class indices must lie in 0 .. {classes - 1}"
            )
        else:
            low, high = (end.item() for end in target.aminmax())
            if low < 0 or high >= classes:
                raise ValueError(f"class indices must lie in 0 .. {classes - 1}, got {low} .. {high}")
        return x.new_zeros(batch, classes).scatter_(1, target[:, None], 1)

    def _check_states(self, x: Tensor, states: Sequence[Tensor]) -> None:
        wanted = [(len(x), *shape) for shape in state_shapes(self.circuit(), x.shape[2:])]
        if not isinstance(states, list | tuple) or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(f"states must be a list of tensors of the shapes {wanted}, got {shown(states)}")
        got = [tuple(s.shape) for s in states]
        if got != wanted:
            raise ValueError(f"states must have the shapes {wanted}, got {got}")
        for layer, s in enumerate(states):
            if s.dtype != x.dtype or s.device != x.device:
                raise TypeError(f"states[{layer}] must be {x.dtype} on {x.device} like x, got {s.dtype} on {s.device}")

    def extra_repr(self) -> str:
        d = self.dynamics
        energy = f", dt={d.dt}, clip={d.clip}" if d.kind == "energy" else ""
        schedule = "" if d.schedule == "synchronous" else f", schedule={d.schedule!r}"
        return (
            f"activation={d.activation!r}, output_activation={d.output_activation!r}, dynamics={d.kind!r}{energy}, "
            f"feedback={'tied' if self.free_feedback is None else 'free'!r}, readout={self.readout!r}{schedule}"
        )


def _fresh_like(weight: Tensor) -> nn.Parameter:
    """A weight of the same shape, dtype and device with nn.Linear's default initialisation."""
    fresh = torch.empty_like(weight)
    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
    return nn.Parameter(fresh)
