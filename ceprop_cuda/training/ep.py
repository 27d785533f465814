"""Equilibrium propagation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import engine_for, exact
from ..records import StepResult, refuse_not_finite
from .nudged import NudgedRule, Work
from .rule import add_to_grads
from .setting import flag, setting


class EP(NudgedRule):
    """Equilibrium propagation: free phase, nudged phase, one contrast per batch (arXiv 1905.13633, 2006.03824).

    With r and r' the states at the ends of the free and of the nudged phase (in energy dynamics rho of them), r[-1] the
    input, and tied feedback:

        dL/dW[l] ~ -(r'[l]^T r'[l-1] - r[l]^T r[l-1]) / (beta B)

    Free feedback and ``shared_update``: see ``ceprop_cuda.spec.reference.contrast``.

    Args:
        net: the network, which making a rule does not change. Several rules may work on one.
        free_steps, nudged_steps: lengths T and K of the phases.
        beta: strength of the nudge; may be negative, not 0.
        nudging: "positive" (as ``beta`` says), "random_sign" (a fair coin on its sign per batch, from torch's global
            generator) or "symmetric" (a phase each with +beta and -beta, contrast over 2 beta).
        nudge_at: "state", rho(a) + beta (y - s) (2005.04168), or "drive", rho(a + beta (y - s)) (2006.03824).
            None: "state", with a readout "drive".
        loss: "mse", ||y - s||^2 / 2, or "cross_entropy" (linear output units or a readout). None: "mse", with a
            readout "cross_entropy".
        accumulate: sum the contrasts of consecutive nudged steps (2005.04168); differs for free feedback only.
        shared_update: forward and feedback weights both get the update of tied ones (Kolen-Pollack, 2006.03824).
        backend: "auto", "fused" or "reference".
        engine: as for :class:`ceprop_cuda.training.Rule`.
        tolerance: None, or end a phase already after 4, 8, 12, ... of its steps if the last of them moved no unit of
            any sample of the batch by more than this. 0 ends it only where further steps would change nothing.
        precision: "exact", or "tf32" of float32 on a GPU since Ampere: PyTorch's operators compute the steps' products
            from factors that are rounded to 11 bits. Sums, states, parameters and contrasts stay exact float32. The
            reference is always exact, and ``backend="auto"`` runs it where there are no such products, as on the CPU.
        gate: of free feedback, a factor rho'(a) on what every unit has moved by, s'[l] - s[l], before it enters the
            update of W[l], b[l] and V[l+1]. "unit": a is the unit's whole drive, as Theorem 1 of arXiv 2005.04169 asks.
            "connection": a is only what comes through the connection that learns, W[l] s[l-1] + b[l] for W[l] and
            b[l], V[l+1]^T s[l+1] for V[l+1], as an earlier version of the authors' code had it. None: no factor. The
            drives are those at the free state, or with ``accumulate`` those of each nudged step.

    Raises:
        ValueError, TypeError: a setting is none of the choices, or the network cannot have it.
    """

    accumulate: bool = setting(flag, default=False)

    def work(self) -> Work:
        return super().work()._replace(accumulate=self.accumulate)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> StepResult:
        """Add EP's estimate of the loss gradient to ``p.grad`` of every parameter that requires grad, and run the
        parameters' hooks, as ``loss.backward()`` does.

        Args:
            x: ``(B, *input_shape)``.
            y: class indices ``(B,)`` int64, or float targets ``(B, classes)``.

        Raises:
            ValueError, TypeError: a shape, dtype or device does not fit, or no parameter requires grad; no gradient was
                changed.
            RuntimeError: within ``torch.inference_mode()``.
        """
        circuit = self.circuit_to_train()
        x = self.net.check_input(circuit, x)
        nudge = self.drawn_nudge(self.net.check_nudge_target(circuit, x, y))
        engine = engine_for(self.backend, self.kernels(), circuit, x, self.gate)
        with exact(x):
            ran = engine.ep_step(
                circuit,
                x,
                nudge,
                free_steps=self.free_steps,
                nudged_steps=self.nudged_steps,
                tolerance=self.tolerance,
                symmetric=self.is_symmetric,
                accumulate=self.accumulate,
                shared_update=self.shared_update,
                gate=self.gate,
            )
        learned = [] if engine.stores_only_finite else ran.gradients.parameters()
        result = self.nudged_result(nudge, ran)
        refuse_not_finite(self.net.layers, circuit, x, result, learned)
        add_to_grads(circuit, ran.gradients)
        return result
