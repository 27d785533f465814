"""Chains of convolutions and dense layers: the specification against independent cases and against autograd of Phi, and
the models that a Network takes. All in float64; test_convolution_kernels.py has the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from golden_steps import GOLDEN_CHAINS, assert_chain_is_golden
from problems import relative_error
from torch import Tensor, nn

import ceprop_cuda as cep
from ceprop_cuda import ops
from ceprop_cuda.data import Batches, load
from ceprop_cuda.spec import reference
from ceprop_cuda.spec.connections import Convolution, chain, forward
from ceprop_cuda.spec.dynamics import Circuit, Dynamics, Nudge, drive, emitted, state_shapes

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Independent cases


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("name", GOLDEN_CHAINS)
def test_golden(name: str, backend: str) -> None:
    assert_chain_is_golden(name, backend)


# --- Autograd of Phi


CHAINS = [
    (Convolution((1, 1), (0, 0), "max"), Convolution((1, 1), (1, 1), "max")),
    (Convolution((1, 1), (1, 1), "avg"), Convolution((2, 1), (0, 2), "none")),
    (Convolution((2, 2), (1, 0), "max", (2, 3)), Convolution((1, 1), (1, 1), "avg", (3, 2))),
    (Convolution((1, 1), (2, 2)),),
]


def random_chain(convolutions: tuple[Convolution, ...], **settings: Any) -> tuple[Circuit, Tensor, list[Tensor]]:
    """Convolutions of 3x2 kernels, odd sizes, then two dense layers; states with ties and saturated units."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    channels = [2, 3, 4][: len(convolutions) + 1]
    weights = [normal(above, below, 3, 2) / 3 for below, above in pairwise(channels)]
    x = normal(3, channels[0], 13, 11).clamp(0, 1)  # half of the inputs are equal
    kinds = Dynamics("hard_sigmoid", "hard_sigmoid", **settings)
    of_maps = Circuit(list(weights), [None] * len(weights), None, kinds, chain(len(weights), convolutions))
    sized = state_shapes(of_maps, x.shape[2:])
    flat = int(np.prod(sized[-1]))
    weights += [normal(5, flat) / flat**0.5, normal(4, 5)]
    biases: list[Tensor | None] = [normal(w.shape[0]) for w in weights]
    biases[1] = None
    circuit = Circuit(weights, biases, None, kinds, chain(len(weights), convolutions))
    states = [normal(3, *shape).clamp(0, 1) for shape in state_shapes(circuit, x.shape[2:])]
    return circuit, x, states


def phi(circuit: Circuit, seen: list[Tensor]) -> Tensor:
    """sum_l r[l] . F_l(r[l-1]), per batch."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, (w, b) in enumerate(zip(circuit.weights, circuit.biases, strict=True)):
        total = total + (seen[layer + 1] * forward(seen[layer], w, b, circuit.connections[layer].convolution)).sum()
    return total


@pytest.mark.parametrize("convolutions", CHAINS, ids=str)
def test_the_drive_is_the_derivative_of_phi(convolutions: tuple[Convolution, ...]) -> None:
    circuit, x, states = random_chain(convolutions)
    leaves = [s.clone().requires_grad_() for s in states]
    slopes = torch.autograd.grad(phi(circuit, [x, *leaves]), leaves)
    for layer, slope in enumerate(slopes):
        assert relative_error(drive(circuit, [x, *states], layer), slope) < 1e-13


@pytest.mark.parametrize("kind", ["prototypical", "energy"])
@pytest.mark.parametrize("convolutions", CHAINS, ids=str)
def test_the_contrast_is_that_of_the_derivatives_of_phi(convolutions: tuple[Convolution, ...], kind: str) -> None:
    circuit, x, earlier = random_chain(convolutions, kind=kind)
    later = [(s + 0.3 * torch.rand_like(s)).clamp(0, 1) for s in earlier]
    parameters = [p.requires_grad_() for p in circuit.parameters()]
    slopes = [torch.autograd.grad(phi(circuit, emitted(circuit, x, states)), parameters) for states in (earlier, later)]
    beta = 0.4
    found = reference.contrast(circuit, x, earlier, later, earlier, beta).parameters()
    for before, after, contrast in zip(*slopes, found, strict=True):
        assert relative_error(contrast.detach(), (after - before) / (beta * len(x))) < 1e-12


def test_a_vector_field_with_v_equal_w_and_no_pooling_is_tied() -> None:
    circuit, x, earlier = random_chain((Convolution((1, 1), (1, 1)),))
    field = replace(circuit, free_feedback=[w.clone() for w in circuit.weights[1:]])
    nudge = Nudge(torch.eye(4, dtype=torch.float64)[:3], 0.3)
    phases = {"free_steps": 12, "nudged_steps": 4}
    tied, free = (reference.ep_step(c, x, nudge, **phases) for c in (circuit, field))
    assert all(map(torch.equal, tied.free_states, free.free_states))
    assert all(map(torch.equal, tied.nudged_states[0], free.nudged_states[0]))
    assert [s.shape for s in tied.free_states] == [s.shape for s in earlier]


def test_ep_is_bptt_for_small_beta() -> None:
    torch.manual_seed(1)
    net = cep.convnet((1, 9, 9), (3, 4), 3, 1, "ma", (6, 3), activation="hard_sigmoid").double()
    with torch.no_grad():
        for w, b in zip(net.weights, net.biases, strict=True):
            w.mul_(0.5)
            b.fill_(0.4)  # where the activation has a slope: EP knows of none
    x, y = torch.rand(4, 1, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    cep.BPTT(net, 200, 100).backward(x, y)
    exact = [p.grad for p in net.parameters()]
    net.zero_grad()
    cep.EP(net, 200, 100, 1e-3, nudging="symmetric").backward(x, y)
    for p, gradient in zip(net.parameters(), exact, strict=True):
        assert relative_error(p.grad, gradient) < 1e-4


def test_continual_ep_meets_ep_as_lr_shrinks() -> None:
    torch.manual_seed(1)
    x, y = torch.rand(4, 1, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for feedback in ("tied", "free"):
        net = cep.convnet((1, 9, 9), (3, 4), 3, 1, "mi", (3,), feedback=feedback).double()
        before = [p.detach().clone() for p in net.parameters()]
        cep.EP(net, 50, 8, 0.2, accumulate=True).backward(x, y)
        lr = 1e-7
        cep.CEP(net, 50, 8, 0.2, lr).step(x, y)
        for p, start in zip(net.parameters(), before, strict=True):
            assert relative_error((start - p.detach()) / lr, p.grad) < 1e-4


# --- Networks


def test_convnet_is_the_torch_model() -> None:
    net = cep.convnet((1, 28, 28), (32, 64), 5, 0, "mm", (10,))
    kinds = [type(module) for module in net.model]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear]
    assert (len(net.layers), net.classes) == (3, 10)
    assert [tuple(w.shape) for w in net.weights] == [(32, 1, 5, 5), (64, 32, 5, 5), (10, 1024)]
    x = torch.rand(2, 1, 28, 28)
    assert [tuple(s.shape) for s in net.relax(x, 2)] == [(2, 32, 12, 12), (2, 64, 4, 4), (2, 10)]
    assert net(x).shape == (2, 10)


def test_relax_goes_on_from_given_states() -> None:
    net = cep.convnet((2, 8, 8), (3,), 3, 1, "a", (5,)).double()
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    assert all(map(torch.equal, net.relax(x, 5), net.relax(x, 2, states=net.relax(x, 3))))
    with pytest.raises(ValueError, match=r"states must have the shapes \[\(2, 3, 4, 4\), \(2, 5\)\]"):
        net.relax(x, 1, states=[torch.zeros(2, 48), torch.zeros(2, 5)])
    with pytest.raises(ValueError, match=r"x must be \(B, 2, 8, 8\)"):
        net.relax(x.flatten(1), 1)


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    net = cep.convnet((1, 6, 6), (2,), 3)
    assert ops.obstacle(net.circuit(), torch.rand(1, 1, 6, 6)) is None
    there = torch.empty(1, 1, 6, 6, device="meta")
    assert ops.obstacle(net.circuit(), there) == "there is no fused kernel for device type 'meta'"
    with pytest.raises(RuntimeError, match="the fused kernels take float32 and float64"):
        net.half().relax(torch.rand(1, 1, 6, 6).half(), 1, backend="fused")


CONV, POOL, LINEAR = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Linear(8, 3)


@pytest.mark.parametrize(
    ("modules", "shape", "message"),
    [
        ([CONV, POOL, LINEAR], (1, 6, 6), r"model\[2\] is a Linear on samples of shape \(2, 2, 2\): put nn.Flatten"),
        ([nn.Conv2d(2, 2, 3), nn.Flatten(), LINEAR], (1, 6, 6), r"model\[0\] must take 1 channels, got in_channels=2"),
        ([CONV, nn.Flatten(), LINEAR], (6, 6), r"model\[0\] is a Conv2d: samples must be \(channels, height, width\)"),
        ([nn.Conv2d(1, 2, 7), nn.Flatten(), LINEAR], (1, 6, 6), r"model\[0\] has a kernel of \(7, 7\), larger than"),
        ([CONV, nn.MaxPool2d(5), nn.Flatten(), LINEAR], (1, 6, 6), r"model\[1\] pools windows of \(5, 5\), larger"),
        ([nn.Conv2d(1, 2, 3, dilation=2), nn.Flatten(), LINEAR], (1, 9, 9), r"model\[0\] must be a plain convolution"),
        ([nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), LINEAR], (1, 6, 6), r"model\[0\] must be a plain"),
        ([CONV, nn.MaxPool2d(2, 1), nn.Flatten(), LINEAR], (1, 6, 6), r"model\[1\] must pool windows side by side"),
        ([CONV, nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), LINEAR], (1, 7, 7), r"model\[1\] must pool windows"),
        ([POOL, CONV, nn.Flatten(), LINEAR], (1, 9, 9), r"model\[0\] is MaxPool2d.*: a Network is made of nn.Conv2d"),
        ([CONV, POOL, POOL, nn.Flatten(), LINEAR], (1, 9, 9), r"model\[2\] is MaxPool2d"),
        ([nn.Flatten(), LINEAR, CONV], (8,), r"model\[2\] is Conv2d"),
        ([CONV, POOL], (1, 6, 6), "model must end with an nn.Linear"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(modules: list[nn.Module], shape: tuple, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cep.Network(nn.Sequential(*modules), shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cep.convnet((1, 8, 8), (2, 3), (3, 3, 3)), "kernels must hold 2 values"),
        (lambda: cep.convnet((1, 8, 8), (2, 3), 3, pools="m"), "pools must hold 2 values"),
        (lambda: cep.convnet((1, 8, 8), (2,), 3, pools="x"), "pools must be one of 'm', 'a', 'i', got 'x'"),
        (lambda: cep.convnet((8, 8), (2,), 3), r"input_shape must be \(channels, height, width\)"),
        (lambda: cep.convnet((1, 4, 4), (2, 2), 3, pools="mm"), "nothing is left of the image"),
    ],
)
def test_convnet_refuses_what_does_not_fit(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_training_a_convnet_learns_digits() -> None:

    data = load("digits")
    net = cep.convnet((1, 8, 8), (8,), 3, 1, "m", (10,), activation="half_hard_sigmoid")
    rule = cep.EP(net, 20, 5, 0.3, nudging="symmetric", nudge_at="drive")
    trainer = cep.Trainer(rule, torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9))
    trainer.fit(Batches(data.train_x, data.train_y, 50, shuffle=True), epochs=4, progress=False)
    assert trainer.evaluate(Batches(data.test_x, data.test_y, 200))["error"] < 25
