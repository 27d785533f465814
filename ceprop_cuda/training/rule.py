"""What learning rules share, and what others ask of any rule."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments.choices import Backend, EngineName
from ..backends import Kernels, engine_for, exact
from ..networks import Network
from ..records import StepResult
from ..spec import reference
from ..spec.dynamics import Circuit
from .setting import Checked, setting, whole, word


def _network(_: Any, name: str, net: object) -> Network:
    if isinstance(net, Network):
        return net
    kind = type(net).__name__
    if isinstance(getattr(net, "module", None), Network):
        raise TypeError(
            f"{name} must be a ceprop_cuda.Network, got a {kind} around one: give its .module, and average every "
            "p.grad over the processes yourself"
        )
    hint = ": make one of it by Network(model, input_shape)" if isinstance(net, nn.Sequential) else ""
    raise TypeError(f"{name} must be a ceprop_cuda.Network, got {kind}{hint}")


class Rule(Checked):
    """A learning rule on a network: a free phase, a loss, and a way to learn from a batch.

    For a rule of your own derive a class and write :meth:`backward`, or :meth:`step` and ``moves_parameters = True``;
    a :class:`ceprop_cuda.Trainer` then trains by it, and its runs are resumed only by a rule of the same name and
    settings. Settings of its own are attributes ``name: type = setting(check, default=...)``, see ``setting.py``.

    Args:
        net: the network, which making a rule does not change. Several rules may work on one.
        free_steps: number T of steps of the free phase.
        loss: "mse", ||y - s||^2 / 2, or "cross_entropy" (linear output units or a readout). None: "mse", with a
            readout "cross_entropy".
        backend: "auto", "fused" or "reference".
        engine: which part of the compiled code computes, for tests and measurements. "fused": the fused kernels of a
            CPU, which take chains of layers. "teams": those of a GPU, which run a call on a chain of dense layers in
            one launch, but have no readout and of EP neither a gate nor ``accumulate``. "graph": PyTorch's operators
            with kernels around them, which take any network and on a GPU are recorded in a CUDA graph. "auto": the
            device's fused kernels or teams where they can run, else PyTorch's operators.
    """

    net: Network = setting(_network, kw_only=False, decides=False)
    free_steps: int = setting(whole(0), kw_only=False)
    loss: str | None = setting(lambda rule, _, loss: rule.net.nudging_point(None, loss)[1], default=None)
    backend: Backend = setting(word(Backend), default="auto", decides=False)
    engine: EngineName = setting(word(EngineName), default="auto", decides=False)

    moves_parameters: ClassVar[bool] = False  # by step(); else backward() adds to p.grad, and an optimizer moves them

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Of a rule that moves parameters: what holds its rates, for schedulers and for a run to keep; None if nothing
        does."""
        return None

    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add to ``p.grad`` of every parameter that requires grad what the rule takes for the gradient on a batch.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit, or no parameter requires grad; no gradient was
                changed.
            RuntimeError: within ``torch.inference_mode()``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward()")

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Learn from a batch: move the parameters in place. Args and Raises as of :meth:`backward`."""
        raise NotImplementedError(f"{type(self).__name__} has no step()")

    @torch.no_grad()
    def predict(self, x: Tensor, y: Tensor) -> StepResult:
        """The free phase alone: loss, output and states; x ``(B, *input_shape)``, y as for a training step."""
        self.refuse_wrong_settings()
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        target = self.net.check_target(circuit, x, y)
        ran = self.free_phase(circuit, x)
        with exact(x):
            output = reference.logits(circuit, ran.states)
        return StepResult(self.loss_kind(), target, output, ran.states, ran.steps)

    # -----------------------------------------------------------------------------------------------------------
    # For rules

    def free_phase(self, circuit: Circuit, x: Tensor) -> reference.Relaxed:
        """From rest; ``x`` as :meth:`ceprop_cuda.Network.check_input` returns it."""
        return self.relaxed(circuit, x, self.free_steps)

    def relaxed(self, circuit: Circuit, x: Tensor, steps: int, tolerance: float | None = None) -> reference.Relaxed:
        """As :meth:`free_phase`, of so many steps, by the rule's backend."""
        engine = engine_for(self.backend, self.kernels(), circuit, x)
        with exact(x):
            return engine.relax(circuit, x, steps, tolerance=tolerance)

    def kernels(self) -> Kernels:
        """Those that the rule runs by, where it does not run by the reference."""
        return Kernels(engine=self.engine)

    def loss_kind(self) -> str:
        """``loss``, which is never None: its check fills in the default."""
        assert self.loss is not None
        return self.loss

    def circuit_to_train(self) -> Circuit:
        """The network's circuit, if there is something to learn and no setting is wrong."""
        self.refuse_wrong_settings()
        circuit = self.net.circuit()
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "learning within torch.inference_mode() would leave parameters or gradients that no later training can "
                "use: use torch.no_grad(), or nothing at all"
            )
        if not any(p.requires_grad for p in circuit.parameters()):
            raise ValueError("no parameter of the network requires grad, so there is nothing to learn")
        return circuit


def add_to_grads(circuit: Circuit, gradients: reference.PerParameter) -> None:
    """p.grad += gradient for every parameter that requires grad, and the hooks of parameters.

    Where there are no hooks, the tensors are kept in place of a copy, which would take a fifth of a small network's
    step."""
    pairs = [(p, g) for p, g in zip(circuit.parameters(), gradients.parameters(), strict=True) if p.requires_grad]
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p, _ in pairs) or _is_distributed():
        torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])
        return
    for p, gradient in pairs:
        p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def _is_distributed() -> bool:
    """DistributedDataParallel's hooks are not seen from Python."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
