"""The presets' numbers, compared with the papers' one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ceprop_cuda import BPTT, CEP, EP, Trainer
from ceprop_cuda.data import Batches, load
from ceprop_cuda.presets import CONVOLUTIONAL, DENSE, PRESETS, CosineThenConstant

# T, K, beta, learning rates from the output side (the order of the papers' tables), epochs.
PUBLISHED = {
    "eb-1h": (100, 12, 0.5, (0.05, 0.1), 30),
    "eb-2h": (400, 40, 0.5, (0.01, 0.1, 0.4), 50),
    "p-1h": (40, 15, 0.1, (0.04, 0.08), 30),
    "p-2h": (100, 20, 0.5, (0.005, 0.05, 0.2), 50),
    "p-3h": (180, 20, 0.5, (0.002, 0.01, 0.05, 0.2), 100),
    "ep-1h": (30, 10, 0.1, (0.04, 0.08), 30),
    "ep-2h": (100, 20, 0.5, (0.005, 0.05, 0.2), 50),
    "c-ep-1h": (40, 15, 0.2, (0.0028, 0.0056), 100),
    "c-ep-2h": (100, 20, 0.5, (0.00018, 0.0018, 0.01), 150),
    "c-vf-1h": (40, 15, 0.2, (0.0038, 0.0076), 100),
    "c-vf-2h": (100, 20, 0.35, (0.00016, 0.0016, 0.009), 150),
}


def test_the_presets_are_the_published_ones_and_the_default() -> None:
    assert set(DENSE) == {*PUBLISHED, "digits"}
    assert set(CONVOLUTIONAL) == {"p-conv", "ep-conv", "c-ep-conv", "cifar10-ep-mse", "cifar10-ep-ce", "cifar10-kp-vf"}
    assert {**DENSE, **CONVOLUTIONAL} == PRESETS


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_dense_settings(name: str) -> None:
    free_steps, nudged_steps, beta, rates_from_output, epochs = PUBLISHED[name]
    rates = list(reversed(rates_from_output))
    hidden = len(rates) - 1
    preset = PRESETS[name]
    assert preset.epochs == epochs
    assert preset.batch_size == 20

    net = preset.network(784, 10)
    assert [tuple(w.shape) for w in net.weights] == [(512, 784), *[(512, 512)] * (hidden - 1), (10, 512)]
    assert f"{hidden}h" == name[-2:]
    assert net.dynamics.activation == net.dynamics.output_activation == "sigmoid"
    energy = name.startswith("eb")
    assert net.dynamics.kind == ("energy" if energy else "prototypical")
    if energy:
        assert net.dynamics.dt == 0.2
    assert net.readout is None
    vector_field = name.startswith("c-vf")
    assert (net.free_feedback is not None) == vector_field

    rule = preset.rule(net)
    assert (rule.free_steps, rule.nudged_steps, rule.beta) == (free_steps, nudged_steps, beta)
    assert rule.nudging == ("random_sign" if vector_field else "positive")
    assert rule.loss == "mse"
    assert rule.nudge_at == "state"
    assert rule.shared_update is False
    assert rule.tolerance is None
    assert net.dynamics.schedule == "synchronous"

    optimizer = rule.optimizer
    assert preset.optimizer(net) is None
    assert preset.scheduler(optimizer) is None
    assert preset.data == "mnist"
    assert not preset.augmented
    if name.startswith("c-"):
        assert isinstance(rule, CEP)
        assert rule.lr == tuple(rates)
        assert rule.weight_decay == 0
    else:
        assert isinstance(rule, EP)
        assert isinstance(optimizer, torch.optim.SGD)
        assert [group["lr"] for group in optimizer.param_groups] == rates
        for connection, group in enumerate(optimizer.param_groups):
            assert group["params"][0] is net.weights[connection]
            assert group["params"][1] is net.biases[connection]
            assert len(group["params"]) == 2
            assert group["momentum"] == group["weight_decay"] == group["dampening"] == 0
        by_hand = preset.rule(net, gradients_only=True)
        assert isinstance(by_hand, EP) and not by_hand.moves_parameters
    Trainer(rule)


def test_p_conv() -> None:
    preset = PRESETS["p-conv"]
    assert (preset.data, preset.batch_size, preset.epochs, preset.augmented) == ("mnist", 20, 40, False)
    net = preset.network((1, 28, 28), 10)
    assert [tuple(w.shape) for w in net.weights] == [(32, 1, 5, 5), (64, 32, 5, 5), (10, 64 * 4 * 4)]
    assert [(c.stride, c.padding, c.pool, c.window) for c in net.circuit().structure.convolutions] == [
        ((1, 1), (0, 0), "max", (2, 2))
    ] * 2
    assert net.dynamics.activation == net.dynamics.output_activation == "hard_sigmoid"
    assert (net.dynamics.kind, net.readout, net.free_feedback) == ("prototypical", None, None)
    rule = preset.rule(net)
    assert isinstance(rule, EP)
    assert (rule.free_steps, rule.nudged_steps, rule.beta) == (200, 10, 0.4)
    assert (rule.nudging, rule.nudge_at, rule.loss) == ("positive", "state", "mse")  # as the dense ones of 1905.13633
    optimizer = rule.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    from_output = [0.015, 0.035, 0.15]
    assert [group["lr"] for group in optimizer.param_groups] == from_output[::-1]
    assert all(group["momentum"] == group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert preset.scheduler(optimizer) is None


def test_ep_conv_is_p_conv_nudged_both_ways_in_shorter_phases() -> None:
    preset, parent = PRESETS["ep-conv"], PRESETS["p-conv"]
    phases = {"free_steps": 100, "nudged_steps": 5, "tolerance": 1e-3, "schedule": "asynchronous"}
    assert preset == replace(parent, source=preset.source, nudging="symmetric", **phases)


def test_c_ep_conv_is_ep_conv_with_continual_ep_and_small_rates() -> None:
    preset, parent = PRESETS["c-ep-conv"], PRESETS["ep-conv"]
    assert replace(preset, source=parent.source, continual=False, lr=parent.lr) == parent
    rule = preset.rule(preset.network((1, 28, 28), 10))
    assert isinstance(rule, CEP)
    assert rule.lr == pytest.approx([rate / 20 for rate in parent.lr])


@pytest.mark.parametrize(
    ("name", "nudged_steps", "beta"), [("cifar10-ep-mse", 30, 0.5), ("cifar10-ep-ce", 25, 1), ("cifar10-kp-vf", 30, 1)]
)
def test_deep_convnets(name: str, nudged_steps: int, beta: float) -> None:
    preset = PRESETS[name]
    assert (preset.data, preset.batch_size, preset.epochs, preset.augmented) == ("cifar10", 128, 120, True)
    net = preset.network((3, 32, 32), 10)
    assert [tuple(w.shape) for w in net.weights] == [
        (128, 3, 3, 3),
        (256, 128, 3, 3),
        (512, 256, 3, 3),
        (512, 512, 3, 3),
        (10, 512),
    ]
    convolutions = net.circuit().structure.convolutions
    assert [c.padding for c in convolutions] == [(1, 1), (1, 1), (1, 1), (0, 0)]
    assert {(c.stride, c.pool, c.window) for c in convolutions} == {((1, 1), "max", (2, 2))}
    assert net.dynamics.activation == net.dynamics.output_activation == "half_hard_sigmoid"
    squared, free = name == "cifar10-ep-mse", name == "cifar10-kp-vf"
    assert (net.readout, len(net.layers)) == ((None, 5) if squared else ("softmax", 4))
    assert (net.free_feedback is not None) == free
    if free:
        assert all(60 < angle < 120 for angle in net.angles())  # drawn apart

    rule = preset.rule(net)
    assert isinstance(rule, EP)
    assert (rule.free_steps, rule.nudged_steps, rule.beta) == (250, nudged_steps, beta)
    assert (rule.nudging, rule.nudge_at, rule.loss) == ("symmetric", "drive", "mse" if squared else "cross_entropy")
    assert rule.shared_update == free

    optimizer = rule.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.15, 0.1, 0.08, 0.05]
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"], group["dampening"], group["nesterov"]) == (
            0.9,
            3e-4,
            0,
            False,
        )
    scheduler = preset.scheduler(optimizer)
    assert isinstance(scheduler, CosineThenConstant)
    assert (scheduler.T_max, scheduler.eta_min) == (100, 1e-5)
    Trainer(rule, scheduler=scheduler)


def test_rates_fall_along_a_cosine_and_stay() -> None:
    """lr(t) = 1e-5 + (lr(0) - 1e-5) (1 + cos(pi t / 100)) / 2 for t <= 100 epochs, then 1e-5."""
    preset = PRESETS["cifar10-ep-mse"]
    optimizer = preset.rule(preset.network((3, 32, 32), 10)).optimizer
    assert optimizer is not None
    scheduler = preset.scheduler(optimizer)
    assert scheduler is not None
    for epoch in range(130):
        fall = (1 + math.cos(math.pi * min(epoch, 100) / 100)) / 2
        expected = [1e-5 + (lr - 1e-5) * fall for lr in preset.lr]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_a_dense_preset_takes_a_shape_or_a_number_of_values() -> None:
    for inputs in (12, (12,), (3, 2, 2)):
        net = PRESETS["ep-1h"].network(inputs, 5)
        assert net(torch.rand(4, 3, 2, 2)).shape == net(torch.rand(4, 12)).shape == (4, 5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (784,)])
def test_images_that_do_not_fit_the_convolutions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"nothing is left of the image|input_shape must be"):
        PRESETS["cifar10-ep-mse"].network(shape, 10)


def test_vector_fields_start_aligned() -> None:
    for name in ("c-vf-1h", "c-vf-2h"):
        net = PRESETS[name].network(30, 10)
        for weight, feedback in zip(net.weights[1:], net.feedback[1:], strict=True):
            assert feedback is not None and feedback is not weight
            assert torch.equal(feedback, weight)


def test_weights_start_as_torch_draws_linears() -> None:
    torch.manual_seed(3)
    net = PRESETS["p-2h"].network(784, 10)
    torch.manual_seed(3)
    for sizes, weight, bias in zip([(784, 512), (512, 512), (512, 10)], net.weights, net.biases, strict=True):
        linear = torch.nn.Linear(*sizes)
        assert torch.equal(weight, linear.weight)
        assert bias is not None and torch.equal(bias, linear.bias)


def test_every_parameter_of_a_network_with_feedback_reaches_the_optimizer() -> None:
    preset = replace(PRESETS["ep-2h"], feedback="free")
    net = preset.network(20, 5)
    optimizer = preset.rule(net).optimizer
    assert optimizer is not None
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert groups == [
        {id(p) for p in (w, b, v) if p is not None}
        for w, b, v in zip(net.weights, net.biases, net.feedback, strict=True)
    ]
    assert set.union(*groups) == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "cifar10-kp-vf"])
def test_bptt_learns_with_the_steps_and_rates_of_the_preset(name: str) -> None:
    preset = replace(PRESETS[name], bptt=True, tolerance=None, gate=None)  # neither of which it has
    net = preset.network({"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "digits": (1, 8, 8)}[preset.data], 10)
    rule = preset.rule(net, "reference")
    assert isinstance(rule, BPTT)
    assert (rule.free_steps, rule.unrolled_steps) == (preset.free_steps, preset.nudged_steps)
    assert rule.loss == ("mse" if net.readout is None else "cross_entropy")
    assert rule.backend == "reference"
    optimizer = preset.optimizer(net)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == list(preset.lr)
    Trainer(rule, optimizer, preset.scheduler(optimizer))


def test_bptt_refuses_what_it_has_not() -> None:
    for preset, lacking in (
        (PRESETS["cifar10-kp-vf"], "shared update"),
        (replace(PRESETS["ep-1h"], tolerance=0.0), "tolerance"),
        (PRESETS["c-vf-1h"], "gate"),
    ):
        with pytest.raises(ValueError, match=f"BPTT has no {lacking}"):
            replace(preset, bptt=True).rule(preset.network((3, 32, 32), 10))


def test_the_backend_reaches_the_rule() -> None:
    for name in ("ep-1h", "c-ep-1h"):
        preset = PRESETS[name]
        assert preset.rule(preset.network(20, 5), "reference").backend == "reference"


def test_the_default_learns_the_digits() -> None:
    preset = PRESETS["digits"]
    digits = load("digits")
    net = preset.network(64, digits.classes)
    assert isinstance(preset.rule(net), CEP)
    history = Trainer(preset.rule(net)).fit(
        Batches(digits.train_x, digits.train_y, preset.batch_size, shuffle=True),
        epochs=10,  # a quarter of the preset's, which end near 2.5 %
        test=Batches(digits.test_x, digits.test_y, 359),
        progress=False,
    )
    assert history[-1]["test_error"] is not None
    assert history[-1]["test_error"] < 7
