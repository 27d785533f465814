"""The presets' numbers, compared with the papers' tables one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ceprop_cuda import CEP, EP, Trainer
from ceprop_cuda.data import Batches, load
from ceprop_cuda.presets import PRESETS

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
    assert set(PRESETS) == {*PUBLISHED, "digits"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
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

    optimizer = preset.optimizer(net)
    if name.startswith("c-"):
        assert isinstance(rule, CEP)
        assert rule.lr == rates
        assert rule.weight_decay == 0
        assert optimizer is None
    else:
        assert isinstance(rule, EP)
        assert isinstance(optimizer, torch.optim.SGD)
        assert [group["lr"] for group in optimizer.param_groups] == rates
        for connection, group in enumerate(optimizer.param_groups):
            assert group["params"][0] is net.weights[connection]
            assert group["params"][1] is net.biases[connection]
            assert len(group["params"]) == 2
            assert group["momentum"] == group["weight_decay"] == group["dampening"] == 0
    Trainer(rule, optimizer)


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
    optimizer = preset.optimizer(net)
    assert optimizer is not None
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert groups == [
        {id(p) for p in (w, b, v) if p is not None}
        for w, b, v in zip(net.weights, net.biases, net.feedback, strict=True)
    ]
    assert set.union(*groups) == {id(p) for p in net.parameters()}


def test_the_backend_reaches_the_rule() -> None:
    for name in ("ep-1h", "c-ep-1h"):
        preset = PRESETS[name]
        assert preset.rule(preset.network(20, 5), "reference").backend == "reference"


def test_the_default_learns_the_digits() -> None:
    preset = PRESETS["digits"]
    digits = load("digits")
    net = preset.network(64, digits.classes)
    assert isinstance(preset.rule(net), CEP)
    history = Trainer(preset.rule(net), preset.optimizer(net)).fit(
        Batches(digits.train_x, digits.train_y, preset.batch_size, shuffle=True),
        epochs=10,  # a quarter of the preset's, which end near 2.5 %
        test=Batches(digits.test_x, digits.test_y, 359),
        progress=False,
    )
    assert history[-1]["test_error"] is not None
    assert history[-1]["test_error"] < 7
