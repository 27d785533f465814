"""What is timed: training steps of published settings, over batch sizes and widths, and relaxation alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise

import torch
from torch import Tensor

from ..networks import Network
from ..presets import PRESETS, Preset

BATCH_SIZES = (1, 20, 64, 256, 1024)
WIDTHS = (128, 256, 1024, 2048, 4096)  # of both hidden layers; 512 is the presets' own
QUICK = ("c-ep-1h-b20", "c-vf-1h-b20", "ep-1h-b20", "ep-2h-b20")


@dataclass(frozen=True)
class Case:
    """One training step, or one free phase alone, of a network of random weights on a random batch."""

    name: str
    preset: Preset
    batch: int
    relaxes_only: bool = False
    inputs: int | tuple[int, int, int] = 784  # or the shape of an image, below convolutions
    classes: int = 10
    device: str = "cpu"  # | "cuda"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of every layer, of convolutions the channels, the input first."""
        convolutions = self.preset.convolutions
        channels = () if convolutions is None else convolutions.channels
        return (self.sample[0], *channels, *self.preset.hidden, self.classes)

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape of an input."""
        return (self.inputs,) if isinstance(self.inputs, int) else self.inputs

    @property
    def rule(self) -> str:
        if self.relaxes_only:
            return "relax"
        if not self.preset.continual:
            return "EP"
        return "C-EP" if self.preset.feedback == "tied" else "C-VF"

    @property
    def free_steps(self) -> int:
        return self.preset.free_steps

    @property
    def nudged_steps(self) -> int:
        return 0 if self.relaxes_only else self.preset.nudged_steps

    @property
    def steps(self) -> int:
        return self.free_steps + self.nudged_steps

    def of_steps(self, free: int, nudged: int) -> Case:
        """The same with other numbers of steps."""
        return replace(self, preset=replace(self.preset, free_steps=free, nudged_steps=nudged))

    def problem(self, dtype: torch.dtype) -> tuple[Network, Tensor, Tensor]:
        """A network, inputs ``(B, *sample)``, targets ``(B, classes)``, the same at every call and on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.preset.network(self.inputs, self.classes)
            x = torch.rand(self.batch, *self.sample)
            labels = torch.randint(self.classes, (self.batch,))
        target = torch.nn.functional.one_hot(labels, self.classes)
        return net.to(self.device, dtype), x.to(self.device, dtype), target.to(self.device, dtype)


def needed_gflop(case: Case) -> float:
    """What the cheapest algorithm known for the case must multiply and add, in 10^9 operations, two per multiply-add.

    Matrix products alone, with B samples and layers of n units (n' in the layer below, n_in inputs, n_0 units above
    them), connections between layers summed over:

    - the drive of layer 0 by the input, once, 2 B n_in n_0;
    - every step both ways through the inner connections, 4 B n n';
    - EP: the contrast of connection 0, 2 B n_in n_0 (of a difference of states with the input), and of the inner
      connections, 4 B n n';
    - continual EP, connection 0, the cheaper of moving the weights and the drive at every step, 4 B n_in n_0, and of
      x x^T once, 2 B^2 n_in, the drive moved by it at every step, 2 B^2 n_0, and the weights moved at the end,
      2 B n_in n_0;
    - with convolutions: see _of_convolutions();
    - continual EP, inner connections, the cheaper of the update at every step, 4 B n n', and, if they are tied, of its
      low-rank form: 8 B^2 n at every step, summed over layers, and 4 B n n' at the end.
    """
    if case.preset.convolutions is not None:
        return _of_convolutions(case) / 1e9
    batch, (inputs, first, *_), steps = case.batch, case.sizes, case.nudged_steps
    through_input = 2 * batch * inputs * first
    inner = 4 * batch * sum(below * above for below, above in pairwise(case.sizes[1:]))
    total = through_input + case.steps * inner
    if case.rule == "EP":
        total += through_input + inner
    elif case.preset.continual and not case.relaxes_only:
        gram = 2 * batch**2 * (inputs + steps * first) + through_input
        total += min(2 * steps * through_input, gram)
        low_rank = 8 * batch**2 * steps * sum(case.sizes[1:]) + inner
        total += min(steps * inner, low_rank) if case.preset.feedback == "tied" else steps * inner
    return total / 1e9


def _of_convolutions(case: Case) -> float:
    """With convolutions, of w weights at p positions of the kernel, which a pooling leaves q places of:

    - the drive of layer 0 by the input, once, and of the others at every step, 2 B w p (dense: w);
    - at every step back from every layer but the first, 2 B w q, as a maximum goes back to one position; averages do
      to all of them, but their kernels can be added up first;
    - EP: the contrast, once, 2 B w q for connection 0 and 4 B w q for the others, whose maxima are looked for at both
      ends, 4 B w p;
    - continual EP: the same at every nudged step, but that one end's maxima are known; and connection 0 anew, 2 B w p.

    Zeros, by which the kernels need not multiply on the way back, are counted.
    """
    net, _, _ = case.problem(torch.float32)
    circuit, size = net.circuit(), case.sample[1:]
    up, back = [], []
    for w, (_, _, made) in zip(circuit.weights, circuit.structure.connections, strict=True):
        positions = places = 1
        if made is not None:
            positions = math.prod(replace(made, pool="none").output_size(w, size))
            size = made.output_size(w, size)
            places = math.prod(size)
        up.append(2 * case.batch * w.numel() * positions)
        back.append(2 * case.batch * w.numel() * places)
    total = up[0] + case.steps * sum(up[1:] + back[1:])
    if case.relaxes_only:
        return total
    contrast = back[0] + 2 * sum(back[1:])
    picked = sum(up[1 : len(circuit.structure.convolutions)])
    if case.preset.continual:
        return total + case.nudged_steps * (contrast + picked + up[0])
    return total + contrast + 2 * picked


def all_cases() -> list[Case]:
    """The whole grid."""
    swept = [f"{rule}-{depth}" for rule in ("c-ep", "c-vf", "ep") for depth in ("1h", "2h")]
    cases = [_case(name, batch) for name in swept for batch in BATCH_SIZES]
    cases.append(_case("p-3h", 20))
    for name in ("c-ep-2h", "c-vf-2h", "ep-2h"):
        preset = PRESETS[name]
        cases += [Case(f"{name}-n{width}", _comparable(replace(preset, hidden=(width, width))), 20) for width in WIDTHS]
    cases += [Case(f"relax-2h-b{batch}", PRESETS["p-2h"], batch, relaxes_only=True) for batch in (20, 24, 64, 256)]
    # Both with the published phases: that other presets' end as soon as states settle depends on the batch.
    convnet = PRESETS["p-conv"]
    continual = replace(convnet, continual=True, lr=PRESETS["c-ep-conv"].lr)
    for name, preset in (("p-conv", convnet), ("c-ep-conv", continual)):
        cases.append(Case(f"{name}-b20", preset, 20, inputs=(1, 28, 28)))
    # A tenth of its steps: all of them take PyTorch a minute.
    short = replace(_comparable(PRESETS["cifar10-ep-mse"]), free_steps=25, nudged_steps=3)
    cases.append(Case("cifar10-ep-mse-t25-b8", short, 8, inputs=(3, 32, 32)))
    return cases


def chosen_cases(patterns: Sequence[str], device: str = "cpu") -> list[Case]:
    """The cases whose names match one of the shell ``patterns``, in the order of those; ValueError if one matches
    nothing."""
    cases = [replace(case, device=device) for case in all_cases()]
    for pattern in patterns:
        if not any(fnmatch(case.name, pattern) for case in cases):
            raise ValueError(f"no case matches {pattern!r}; there are {', '.join(case.name for case in cases)}")
    matching = {case.name: case for pattern in patterns for case in cases if fnmatch(case.name, pattern)}
    return list(matching.values())


def _case(name: str, batch: int) -> Case:
    return Case(f"{name}-b{batch}", _comparable(PRESETS[name]), batch)


def _comparable(preset: Preset) -> Preset:
    """With a fixed sign of beta, as a random one costs nothing, and without a gate: so all contenders do the same."""
    return replace(preset, nudging="positive", gate=None)
