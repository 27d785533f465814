"""A torch model seen as a convergent network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ..arguments.checks import one_of, real_number, shown, tolerance_or_none, whole_number
from ..arguments.choices import (
    Backend,
    DynamicsKind,
    EngineName,
    Feedback,
    NudgeAt,
    Precision,
    Readout,
    Schedule,
    chosen,
    words,
)
from ..backends import Kernels, engine_for, exact
from ..spec import losses, reference
from ..spec.dynamics import ACTIVATIONS, Circuit, Dynamics, Nudge, energy, phi
from ..validate import check_input, check_states, check_target, dense_target
from .chain import chain_of
from .graphs import Graph, graph_of
from .layout import parameter_of, refuse_changes

BACKENDS, PRECISIONS, ENGINES = words(Backend), words(Precision), words(EngineName)


class Network(nn.Module):
    """Layers that settle to a fixed point, around a torch model whose Parameters they share: a chain of them, or what
    :func:`ceprop_cuda.graph` makes.

    Args:
        model: ``nn.Sequential`` of any number of ``nn.Conv2d``, each followed by an ``nn.MaxPool2d``, an
            ``nn.AvgPool2d`` or none, then an ``nn.Flatten`` and at least one ``nn.Linear``. A layer's state is what
            comes after the pooling.
        input_shape: shape of one sample, e.g. ``(784,)``, or ``(1, 28, 28)`` where a Conv2d or an nn.Flatten leads.
        activation: of the hidden units: "sigmoid" 1/(1+exp(-4(x-1/2))), "hard_sigmoid" clip(x, 0, 1),
            "half_hard_sigmoid" clip(x/2, 0, 1), "centered_hard_sigmoid" clip(x, -1/2, 1/2), "tanh", "linear",
            "relu" max(x, 0) or "relu6" clip(x, 0, 6).
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
        free_steps: steps that ``forward`` relaxes for. A learning rule has a number of its own, by which it trains and
            predicts, and leaves this one alone.
        schedule: "synchronous", all layers move at once, or "asynchronous" (2312.15103), every step first moves the
            layers 0, 2, ... at once, then the layers 1, 3, ... from the newest states of their neighbours: the same
            fixed points in about half the steps, each of which costs the same.

    Raises:
        TypeError: ``model`` is no chain of supported modules; the message names the module.
        ValueError: sizes do not fit together, or a setting is none of the choices.
    """

    def __init__(
        self,
        model: nn.Sequential | Graph,
        input_shape: Sequence[int],
        *,
        activation: str = "sigmoid",
        output_activation: str | None = None,
        dynamics: DynamicsKind = "prototypical",
        dt: float = 0.2,
        clip: bool = True,
        feedback: Feedback = "tied",
        readout: Readout | None = None,
        free_steps: int = 50,
        schedule: Schedule = "synchronous",
    ) -> None:
        super().__init__()
        if readout is not None and output_activation is not None:
            raise ValueError(f"output_activation must be None with a readout, got {shown(output_activation)}")
        output_activation = activation if output_activation is None else output_activation
        one_of("activation", activation, ACTIVATIONS)
        one_of("output_activation", output_activation, ACTIVATIONS)
        chosen("dynamics", dynamics, DynamicsKind)
        clip = one_of("clip", clip, (True, False))
        chosen("feedback", feedback, Feedback)
        chosen("readout", readout, None | Readout)
        chosen("schedule", schedule, Schedule)
        dt = real_number("dt", dt, lambda value: value > 0, "a finite number > 0")
        self.free_steps = whole_number("free_steps", free_steps, 0)
        shape = [input_shape] if isinstance(input_shape, Integral) else input_shape
        self.input_shape = tuple(whole_number("input_shape", size, 1) for size in shape)
        self.dynamics = Dynamics(activation, output_activation, dynamics, dt, clip, schedule)
        self.readout = readout
        if isinstance(model, Graph):
            if readout is not None:
                raise ValueError(f"readout must be None for a graph: its output units are its answer, got {readout!r}")
            layout = graph_of(model, self.input_shape)
        else:
            layout = chain_of(model, self.input_shape, readout is not None)
        self.model = model
        self._layout = layout
        self.free_feedback: nn.ParameterList | None = None
        if feedback == "free":
            self.free_feedback = nn.ParameterList(_fresh_like(self.weights[e]) for e in self._layout.structure.inner)

    @property
    def layers(self) -> list[str]:
        """The names of the layers with states, in the order of the states: of a chain "0", "1", ..., input side first;
        of a graph as they first appear in its connections. A readout is none."""
        return list(self._layout.names)

    @property
    def classes(self) -> int:
        """Number of output units, or of the readout's classes."""
        return self.weights[self._layout.structure.answering].shape[0]

    @property
    def weights(self) -> list[Tensor]:
        """W[e] ``(n_above, n_below)``, of a convolution ``(n_above, n_below, kernel height, width)``, by connection: of
        a chain the input side first, with a readout R ``(classes, n)`` last; of a graph in the order given."""
        return [parameter_of(module, "weight") for module in self._layout.modules]

    @property
    def biases(self) -> list[Tensor | None]:
        """b[e] ``(n_above,)`` by connection, as the weights; None where the module has no bias."""
        return [parameter_of(module, "bias") for module in self._layout.modules]

    @property
    def feedback(self) -> list[Tensor | None]:
        """V[e], shaped like W[e]; None for connections from the input, for tied ones and for a readout."""
        feedback: list[Tensor | None] = [None] * len(self._layout.modules)
        for e, v in zip(self._layout.structure.inner, self.free_feedback or (), strict=False):
            feedback[e] = v
        return feedback

    def circuit(self) -> Circuit:
        """The parameters as the kernels and the reference take them; the tensors are shared, not copied.

        Raises TypeError if the model is no longer as it was when the Network was made.
        """
        layout = self._layout
        if not torch.compiler.is_compiling():
            refuse_changes(self.model, layout)
        free = None if self.free_feedback is None else list(self.free_feedback)
        return Circuit(self.weights, self.biases, free, self.dynamics, layout.structure)

    def relax(
        self,
        x: Tensor,
        steps: int,
        *,
        states: Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        nudge_at: NudgeAt | None = None,
        loss: str | None = None,
        backend: Backend = "auto",
        tolerance: float | None = None,
        precision: Precision = "exact",
        engine: EngineName = "auto",
    ) -> list[Tensor]:
        """The layers' states after ``steps`` steps, ``(B, n_l)`` each, of convolutions ``(B, C, H, W)`` after the
        pooling. Always a list, in the order of :attr:`layers`: nearly every caller wants states alone. :meth:`settle`
        also says how many steps there were.

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
            precision, engine: as for :class:`ceprop_cuda.EP`.

        Raises:
            ValueError, TypeError: a shape, dtype, device or setting does not fit; nothing was computed.
            RuntimeError: ``backend="fused"`` cannot run this.
        """
        ran = self.settle(
            x,
            steps,
            states=states,
            target=target,
            beta=beta,
            nudge_at=nudge_at,
            loss=loss,
            backend=backend,
            tolerance=tolerance,
            precision=precision,
            engine=engine,
        )
        return ran.states

    def settle(
        self,
        x: Tensor,
        steps: int,
        *,
        states: Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        beta: float = 0.0,
        nudge_at: NudgeAt | None = None,
        loss: str | None = None,
        backend: Backend = "auto",
        tolerance: float | None = None,
        precision: Precision = "exact",
        engine: EngineName = "auto",
    ) -> reference.Relaxed:
        """As :meth:`relax`, a pair ``(states, steps)``: ``steps`` ``(1,)`` int64 is the number of steps that were made,
        on the device of the states, so that asking for it waits for no GPU."""
        one_of("backend", backend, BACKENDS)
        kernels = Kernels(one_of("precision", precision, PRECISIONS), one_of("engine", engine, ENGINES))
        steps = whole_number("steps", steps, 0)
        tolerance = tolerance_or_none(tolerance)
        circuit = self.circuit()
        x = self.check_input(circuit, x)
        if states is not None:
            check_states(circuit, x, states)
        nudge = None
        if target is not None:
            wanted = "a finite number other than 0 when there is a target"
            beta = real_number("beta", beta, lambda value: value != 0, wanted)
            nudge_at, loss = self.nudging_point(nudge_at, loss)
            nudge = Nudge(self.check_nudge_target(circuit, x, target), beta, nudge_at, loss)
        elif not isinstance(beta, Real) or beta != 0:
            raise ValueError(f"beta must be 0 without a target, got {shown(beta)}; pass target= to nudge")
        engine_to_run = engine_for(backend, kernels, circuit, x)
        with exact(x):
            return engine_to_run.relax(circuit, x, steps, states=states, nudge=nudge, tolerance=tolerance)

    def forward(self, x: Tensor) -> Tensor:
        """Output units or readout logits ``(B, classes)`` after ``free_steps`` free steps; x ``(B, *input_shape)``."""
        states = self.relax(x, self.free_steps)
        with exact(x):
            return reference.logits(self.circuit(), states)

    def phi(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """The primitive function of each sample, ``(B,)``: the sum over the connections of s[above] . F(s[below]), in
        energy dynamics of rho of the input and of the states (1905.13633, section 3). Differentiable.

        Args:
            x: ``(B, *input_shape)``.
            states: of every layer, as :meth:`relax` returns them.

        Raises:
            ValueError: the network has free feedback, whose dynamics no function drives; or a shape does not fit.
        """
        return self._scalar(phi, x, states)

    def energy(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """What the energy dynamics descend, of each sample, ``(B,)``: the sum of s^2 / 2 minus :meth:`phi`.

        Args and Raises as there; ValueError, too, for prototypical dynamics.
        """
        if self.dynamics.kind != "energy":
            raise ValueError(f"energy needs a network with dynamics='energy', got {self.dynamics.kind!r}: see phi")
        return self._scalar(energy, x, states)

    def _scalar(self, function: Callable[..., Tensor], x: Tensor, states: Sequence[Tensor]) -> Tensor:
        if self.free_feedback is not None:
            raise ValueError(f"{function.__name__} needs feedback='tied', got a network with free feedback")
        circuit = self.circuit()
        x = self.check_input(circuit, x)
        check_states(circuit, x, states)
        with exact(x):
            return function(circuit, x, states)

    @torch.no_grad()
    def angles(self) -> list[float]:
        """Degrees between W[e] and V[e] of the connections between two layers; 0 everywhere when tied."""
        if self.free_feedback is None:
            return [0.0] * len(self._layout.structure.inner)
        result = []
        for e, v in zip(self._layout.structure.inner, self.free_feedback, strict=True):
            weight = self.weights[e].flatten().double()
            cosine = torch.nn.functional.cosine_similarity(weight, v.flatten().double(), dim=0)
            result.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine.item())))))
        return result

    @torch.no_grad()
    def set_angle(self, degrees: float) -> None:
        """V[e] <- W[e] with each sign flipped with probability (1 - cos) / 2, for an angle of about ``degrees``
        (2005.04168). Draws from torch's global generator. Raises ValueError when tied or outside [0, 180]."""
        real_number("degrees", degrees, lambda value: 0 <= value <= 180, "a number of degrees in [0, 180]")
        if self.free_feedback is None:
            raise ValueError("set_angle needs feedback='free', got a network with tied feedback")
        flip = (1 - math.cos(math.radians(degrees))) / 2
        for e, v in zip(self._layout.structure.inner, self.free_feedback, strict=True):
            weight = self.weights[e]
            signs = 1 - 2 * (torch.rand(weight.shape, device="cpu") < flip).to(weight)
            v.copy_(weight * signs)

    def nudging_point(self, nudge_at: NudgeAt | None, loss: str | None) -> tuple[NudgeAt, str]:
        """``nudge_at`` and ``loss`` with their defaults filled in; ValueError if the network cannot be nudged so."""
        if self.readout is not None:
            nudge_at = one_of("nudge_at of a network with a readout", nudge_at, (None, "drive"))
            of_logits = [name for name, known in losses.BY_NAME.items() if known.of_logits]
            loss = one_of("loss of a network with a readout", loss, (None, *of_logits))
            return nudge_at or "drive", loss or "cross_entropy"
        at: NudgeAt = chosen("nudge_at", nudge_at, None | NudgeAt) or "state"
        loss = one_of("loss", loss, (None, *losses.LOSSES)) or "mse"
        linear = self.dynamics.output_activation == "linear"
        if losses.BY_NAME[loss].of_logits and not linear:
            raise ValueError(
                f"loss={loss!r} needs output_activation='linear' or readout='softmax', got "
                f"output_activation={self.dynamics.output_activation!r}"
            )
        return at, loss

    def check_input(self, circuit: Circuit, x: Tensor) -> Tensor:
        """``x`` as the kernels and the reference take it; ValueError or TypeError if its shape, dtype or device do not
        fit ``self.circuit()``."""
        return check_input(circuit, x, self.input_shape, self._layout.flattens_input)

    def check_target(self, circuit: Circuit, x: Tensor, target: Tensor) -> Tensor:
        """``target`` as ``(B, classes)`` in x's dtype; ValueError or TypeError if it does not fit."""
        return dense_target(self.check_nudge_target(circuit, x, target), x, circuit.classes)

    def check_nudge_target(self, circuit: Circuit, x: Tensor, target: Tensor) -> Tensor:
        """``target`` for a :class:`Nudge` of an engine; as :meth:`check_target`, but class indices stay as they are."""
        return check_target(x, target, circuit.classes)

    def extra_repr(self) -> str:
        d = self.dynamics
        energy = f", dt={d.dt}, clip={d.clip}" if d.kind == "energy" else ""
        schedule = "" if d.schedule == "synchronous" else f", schedule={d.schedule!r}"
        graph = f", {self.model.description()}" if isinstance(self.model, Graph) else ""
        return (
            f"activation={d.activation!r}, output_activation={d.output_activation!r}, dynamics={d.kind!r}{energy}, "
            f"feedback={'tied' if self.free_feedback is None else 'free'!r}, readout={self.readout!r}{schedule}{graph}"
        )


def _fresh_like(weight: Tensor) -> nn.Parameter:
    """A weight of the same shape, dtype and device with nn.Linear's default initialisation."""
    fresh = torch.empty_like(weight)
    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
    return nn.Parameter(fresh)
