"""C-VF by the update of an earlier version of the public code of arXiv 2005.04168, on MNIST.

github.com/ernoult/continualEP, netClasses.py at 0d82069: every connection multiplies the change of a unit's state by
the derivative of its activation where this connection alone would drive the unit, and the bias of the first hidden
layer stays as it is. The settings are those of the preset, if no others are given.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import oscillations
import torch
from torch import Tensor

from ceprop_cuda import CEP, data
from ceprop_cuda.presets import PRESETS, Preset
from ceprop_cuda.records import StepResult
from ceprop_cuda.spec.dynamics import rho, rho_prime
from ceprop_cuda.training import Trainer


class EarlierCVF(CEP):
    """Of chains of dense layers with free feedback and the activation "sigmoid"; nudged one way or by random sign."""

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """As :meth:`CEP.step`; x ``(B, n)``, y ``(B,)``."""
        circuit = self.net.circuit()
        x = self.net.check_input(circuit, x)
        nudge = self.drawn_nudge(self.net.check_target(circuit, x, y))
        w, b, v = circuit.weights, circuit.biases, circuit.free_feedback
        beta = torch.tensor(nudge.beta, dtype=x.dtype)
        rates = torch.tensor(self.lr, dtype=x.dtype) / (beta * len(x))  # (L,)
        free, steps = self.net.settle(x, self.free_steps, tolerance=self.tolerance)

        # The input does not change: one product with it before the steps and one after them.
        from_input = torch.addmm(b[0], x, w[0].T)  # (B, n_0)
        gram = x @ x.T  # (B, B)
        moved = torch.zeros_like(from_input)
        s = free
        for _ in range(self.nudged_steps):
            after, up, down = nudged_step(s, w, b, v, from_input, nudge.target, beta, rates)
            from_input.addmm_(gram, up[0])
            moved += up[0]
            for i in range(1, len(s)):
                w[i].addmm_(up[i].T, s[i - 1])
                b[i].add_(up[i].sum(0))
                v[i - 1].addmm_(s[i].T, down[i - 1])
            s = after
        w[0].addmm_(moved.T, x)
        counts = torch.cat([steps, torch.full_like(steps, self.nudged_steps)])
        return StepResult(self.loss, nudge.target, free[-1], free, counts, s)


@torch.compile
def nudged_step(
    s: list[Tensor],  # (B, n_l) each
    w: list[Tensor],  # (n_l, n_{l-1}) each
    b: list[Tensor],  # (n_l,) each
    v: list[Tensor],  # (n_l, n_{l-1}) each, l > 0
    from_input: Tensor,  # (B, n_0)
    target: Tensor,  # (B, classes)
    beta: Tensor,
    rates: Tensor,  # (L,)
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The next states, and what moves W[l] as (B, n_l), l >= 0, and V[l] as (B, n_{l-1}), l > 0."""
    inner = range(1, len(s))
    below = [from_input, *(torch.addmm(b[i], s[i - 1], w[i].T) for i in inner)]
    above = [s[i] @ v[i - 1] for i in inner]
    after = [rho("sigmoid", drive + back) for drive, back in zip(below, above, strict=False)]
    after.append(rho("sigmoid", below[-1]) + beta * (target - s[-1]))
    change = [new - old for new, old in zip(after, s, strict=True)]
    up = [rates[i] * rho_prime("sigmoid", drive) * change[i] for i, drive in enumerate(below)]
    down = [rates[i + 1] * rho_prime("sigmoid", back) * change[i] for i, back in enumerate(above)]
    return after, up, down


def trainer(preset: Preset, seed: int, tolerance: float | None) -> Trainer:
    torch.manual_seed(seed)  # what ``ceprop train`` begins with, and so the same weights
    net = preset.network(784, 10)
    phases = (net, preset.free_steps, preset.nudged_steps, preset.beta)
    return Trainer(EarlierCVF(*phases, preset.lr, nudging=preset.nudging, tolerance=tolerance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("c-vf-1h", "c-vf-2h"), default="c-vf-1h")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, nargs="+", metavar="X", help="per connection, input side first")
    parser.add_argument("--beta", type=float, metavar="X", help="strength of the nudge")
    parser.add_argument("--tolerance", type=float, help="end a free phase where no unit moves by more than this")
    parser.add_argument("--epochs", type=int, help="default: those of the preset")
    parser.add_argument("--data-dir", default="data", help="folder with torchvision's MNIST")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    mnist = data.load("mnist", arguments.data_dir)
    preset = PRESETS[arguments.preset]
    if arguments.lr is not None:
        preset = replace(preset, lr=tuple(arguments.lr))
    if arguments.beta is not None:
        preset = replace(preset, beta=arguments.beta)
    training = trainer(preset, arguments.seed, arguments.tolerance)
    history = training.fit(
        mnist.train_batches(preset.batch_size, arguments.seed),
        arguments.epochs or preset.epochs,
        test=mnist.test_batches(100),
        out=arguments.out,
        resume=arguments.resume,
        config={"preset": arguments.preset, "seed": arguments.seed},
    )
    last = history[-1]
    still_move, _ = oscillations.moving(training.rule.net, mnist.test_x, preset.free_steps)
    print(f"after {last['epoch']} epochs test error {last['test_error']:.2f} %, training {last['train_error']:.2f} %;")
    print(f"{still_move:.2f} % of the test samples still move after {preset.free_steps} free steps")


if __name__ == "__main__":
    main()
