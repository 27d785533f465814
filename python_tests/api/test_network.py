"""The public API of a Network, on the reference: what it takes, refuses and returns."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import relative_error
from small_network import BATCH, SIZES, X, Y, batch, network
from torch import nn
from torch.nn.utils import prune

import ceprop_cuda as cep

# --- The model inside


def test_a_network_shares_the_models_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3, bias=False))
    net = cep.Network(model, (2, 3))
    assert net.model is model
    assert [*net.state_dict()] == [f"model.{key}" for key in model.state_dict()]
    assert net.weights[0] is model[1].weight and net.weights[1] is model[2].weight
    assert net.biases[0] is model[1].bias and net.biases[1] is None
    assert net.feedback == [None, None]


def test_free_feedback_is_a_parameter_per_connection_above_the_first() -> None:
    net = network(feedback="free")
    keys = [f"model.{key}" for key in net.model.state_dict()]
    assert [*net.state_dict()] == [*keys, "free_feedback.0", "free_feedback.1"]
    assert net.feedback[0] is None
    for w, v in zip(net.weights[1:], net.feedback[1:], strict=True):
        assert isinstance(v, nn.Parameter)
        assert v.shape == w.shape
        assert not torch.equal(v, w)
        assert v.abs().max() <= 1 / math.sqrt(w.shape[1])  # nn.Linear's default


def test_a_readout_has_no_feedback_and_no_state_and_the_layer_below_is_hidden() -> None:
    net = network(feedback="free", readout="softmax")
    assert (net.layers, net.classes, len(net.weights)) == (["0", "1"], 3, 3)
    assert [v is None for v in net.feedback] == [True, False, True]
    states = net.relax(X, 1, backend="reference")
    assert [s.shape for s in states] == [(BATCH, 5), (BATCH, 4)]
    assert torch.equal(states[-1][0], torch.sigmoid(4 * (net.biases[1] - 0.5)))


@pytest.mark.parametrize("feedback", ["tied", "free"])
def test_state_dicts_and_copies_carry_everything(feedback: str) -> None:
    net, other = network(feedback=feedback), network(feedback=feedback)
    x, _ = batch()
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    outputs = [net.relax(x, 20, backend="reference")[-1] for net in (net, other, copied)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    with torch.no_grad():
        copied.weights[0].zero_()
    assert not torch.equal(copied.relax(x, 20, backend="reference")[-1], outputs[0])
    assert torch.equal(net.relax(x, 20, backend="reference")[-1], outputs[0])


def test_mlp_is_a_flatten_and_linears() -> None:
    net = cep.mlp(784, 512, 10, bias=False, activation="tanh")
    assert isinstance(net.model[0], nn.Flatten)
    assert [w.shape for w in net.weights] == [(512, 784), (10, 512)]
    assert net.biases == [None, None]
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


class Doubling(nn.Linear):
    """Computes something else than the Linear that it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Linear:
    linear = nn.Linear(6, 6)
    linear.register_forward_hook(lambda *_: None)
    return linear


def tied_linears() -> list[nn.Linear]:
    """Two modules, one weight."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return [first, second]


@pytest.mark.parametrize(
    ("model", "input_shape", "error", "message"),
    [
        (nn.Linear(6, 3), (6,), TypeError, "nn.Sequential, got Linear"),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), TypeError, r"model\[1\] is ReLU"),
        (nn.Sequential(nn.Linear(6, 5), nn.Flatten()), (6,), TypeError, r"model\[1\] is Flatten"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(6, 5)), (6,), TypeError, r"model\[0\] must flatten all"),
        (nn.Sequential(nn.Linear(6, 5)), (2, 3), TypeError, r"model\[0\].*nn.Flatten"),
        (nn.Sequential(nn.Linear(6, 5)), (7,), ValueError, r"model\[0\] must take 7 features, got in_features=6"),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 3)), (6,), ValueError, r"model\[1\] must take 5 features"),
        (nn.Sequential(nn.Flatten()), (6,), TypeError, "must end with an nn.Linear"),
        (nn.Sequential(*[nn.Linear(6, 6)] * 2), (6,), TypeError, r"model\[1\] shares parameters with model\[0\]"),
        (nn.Sequential(Doubling(6, 6)), (6,), TypeError, r"model\[0\] is Doubling"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
            (6,),
            TypeError,
            r"model\[0\] is Param",
        ),
        (nn.Sequential(hooked()), (6,), TypeError, r"model\[0\] has forward hooks"),
        (nn.Sequential(*tied_linears()), (6,), TypeError, r"model\[1\] shares parameters with model\[0\]"),
    ],
)
def test_unsupported_models_are_refused_by_name(
    model: nn.Module, input_shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cep.Network(model, input_shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "swish"}, "activation must be one of .*'sigmoid'.*got 'swish'"),
        ({"output_activation": "softmax"}, "output_activation must be one of"),
        ({"dynamics": "hopfield"}, "dynamics must be one of"),
        ({"dt": 0.0}, "dt must be .* > 0, got 0.0"),
        ({"dt": math.nan}, "dt must be"),
        ({"clip": "yes"}, "clip must be"),
        ({"feedback": "random"}, "feedback must be one of 'tied', 'free'"),
        ({"readout": "linear"}, "readout must be one of None, 'softmax'"),
        ({"readout": "softmax", "output_activation": "tanh"}, "output_activation must be None with a readout"),
        ({"free_steps": -1}, "free_steps must be an int >= 0"),
        ({"schedule": "random"}, "schedule must be one of 'synchronous', 'asynchronous', got 'random'"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**settings)


def test_repr_says_how_the_network_settles() -> None:
    assert "feedback='tied', readout=None" in repr(network())
    assert "dt=" not in repr(network())
    text = repr(network(activation="tanh", dynamics="energy", dt=0.3, clip=False, feedback="free", readout="softmax"))
    assert "activation='tanh', output_activation='tanh', dynamics='energy', dt=0.3, clip=False" in text
    assert "feedback='free', readout='softmax'" in text
    assert "schedule" not in text
    assert "readout=None, schedule='asynchronous'" in repr(network(schedule="asynchronous"))


# --- Angles


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_set_angle_is_met_within_two_degrees(degrees: float) -> None:
    net = cep.mlp(8, 512, 256, 128, feedback="free")
    net.set_angle(degrees)
    assert net.angles() == pytest.approx([degrees] * 2, abs=2)
    for w, v in zip(net.weights[1:], net.feedback[1:], strict=True):
        assert torch.equal(w.abs(), v.abs())


def test_angles_of_tied_and_of_unrelated_weights() -> None:
    assert cep.mlp(8, 512, 256).angles() == [0]
    assert cep.mlp(8, 512, 256, feedback="free").angles() == pytest.approx([90], abs=2)
    assert cep.mlp(8, 512, 256, 10, feedback="free", readout="softmax").angles() == pytest.approx([90], abs=2)


# --- Relaxing


def test_relax_goes_on_from_given_states() -> None:
    net, (x, y) = network(), batch()
    settings: dict[str, Any] = {"target": y, "beta": 0.2, "nudge_at": "drive", "backend": "reference"}
    once = net.relax(x, 9, **settings)
    twice = net.relax(x, 5, states=net.relax(x, 4, **settings), **settings)
    assert [s.shape for s in once] == [(BATCH, n) for n in SIZES[1:]]
    assert all(map(torch.equal, once, twice))
    assert not torch.equal(once[-1], net.relax(x, 9, backend="reference")[-1])


def test_forward_is_the_free_phase() -> None:
    x, _ = batch()
    net = network(free_steps=20)
    assert relative_error(net(x), net.relax(x, 20, backend="reference")[-1]) < 1e-12
    with_readout = network(free_steps=20, readout="softmax")
    top = with_readout.relax(x, 20, backend="reference")[-1]
    assert relative_error(with_readout(x), with_readout.model[-1](top)) < 1e-12


def test_samples_may_come_in_their_own_shape_or_flat() -> None:
    net = cep.Network(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (1, 2, 3))
    x = torch.rand(BATCH, 1, 2, 3)
    shaped, flat = (net.relax(inputs, 5, backend="reference")[0] for inputs in (x, x.flatten(1)))
    assert torch.equal(shaped, flat)


def test_class_indices_mean_one_hot_targets() -> None:
    net, (x, y) = network(), batch()
    settings: dict[str, Any] = {"beta": 0.2, "backend": "reference"}
    by_index = net.relax(x, 5, target=y, **settings)
    by_float = net.relax(x, 5, target=F.one_hot(y, 3).float(), **settings)
    assert all(map(torch.equal, by_index, by_float))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: net.relax(X[:, :5], 1), ValueError, r"x must be \(B, 6\) with B >= 1, got \(3, 5\)"),
        (lambda net: net.relax(X[:0], 1), ValueError, r"got \(0, 6\)"),
        (lambda net: net.relax(X[0], 1), ValueError, r"got \(6,\)"),
        (lambda net: net.relax(X.float(), 1), TypeError, "x must be torch.float64 .*got torch.float32"),
        (lambda net: net.relax(X.to("meta"), 1), ValueError, "x must be on cpu .*got meta"),
        (lambda net: net.relax(X, 1.5), ValueError, "steps must be an int >= 0, got 1.5"),
        (lambda net: net.relax(X, -1), ValueError, "steps must be an int >= 0, got -1"),
        (lambda net: net.relax(X, 1, backend="cuda"), ValueError, "backend must be one of 'auto', 'fused', 'refer"),
        (lambda net: net.relax(X, 1, beta=0.1), ValueError, "beta must be 0 without a target, got 0.1"),
        (lambda net: net.relax(X, 1, target=Y), ValueError, "beta must be a finite number other than 0"),
        (lambda net: net.relax(X, 1, target=Y, beta=math.nan), ValueError, "beta must be"),
        (lambda net: net.relax(X, 1, target=Y, beta=0.1, nudge_at="top"), ValueError, "nudge_at must be one of"),
        (lambda net: net.relax(X, 1, target=Y, beta=0.1, loss="nll"), ValueError, "loss must be one of"),
        (lambda net: net.relax(X, 1, target=Y + 3, beta=0.1), ValueError, r"in 0 \.\. 2, got 3 \.\. 3"),
        (lambda net: net.relax(X, 1, target=Y - 1, beta=0.1), ValueError, r"in 0 \.\. 2, got -1 \.\. -1"),
        (lambda net: net.relax(X, 1, target=Y[:2], beta=0.1), ValueError, r"\(3,\) int64 .*got \(2,\)"),
        (lambda net: net.relax(X, 1, target=Y.int(), beta=0.1), TypeError, r"got \(\d+,\) torch.int32"),
        (lambda net: net.relax(X, 1, target=X, beta=0.1), ValueError, r"float targets \(3, 3\), got \(3, 6\)"),
        (lambda net: net.relax(X, 1, target=F.one_hot(Y, 3), beta=0.1), TypeError, r"got \(\d+, 3\) torch.int64"),
        (lambda net: net.relax(X, 1, states=[X, X]), ValueError, r"states must have the shapes \[\(3, 5\), .*got"),
        (
            lambda net: net.relax(X, 1, states=[s.float() for s in net.relax(X, 1)]),
            TypeError,
            r"states\[0\] must be torch.f",
        ),
        (lambda net: cep.mlp(6), ValueError, "at least an input and an output size"),
        (lambda net: cep.mlp(6, 0, 3), ValueError, r"sizes\[1\] must be an int >= 1, got 0"),
        (lambda net: cep.mlp(6, 3, readout="softmax"), ValueError, "needs a layer below the readout"),
        (lambda net: net.set_angle(30), ValueError, "needs feedback='free'"),
        (lambda net: network(feedback="free").set_angle(181), ValueError, r"degrees in \[0, 180\], got 181"),
    ],
)
def test_what_does_not_fit_is_refused(
    call: Callable[[cep.Network], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(network())


@pytest.mark.parametrize(
    ("input_shape", "accepted", "refused"),
    [
        ((3, 4), [(3, 4), (12,)], [(4, 3), (1, 3, 4), (11,)]),
        ((12,), [(12,), (3, 4), (1, 4, 3)], [(11,), (3, 3)]),
    ],
)
def test_shapes_that_a_leading_flatten_takes(input_shape: tuple, accepted: list[tuple], refused: list[tuple]) -> None:
    net = cep.Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input_shape)
    for shape in accepted:
        assert net(torch.rand(5, *shape)).shape == (5, 2)
    for shape in refused:
        with pytest.raises(ValueError, match="x must be"):
            net(torch.rand(5, *shape))


# --- A model that is changed after its Network was made


CHANGES: dict[str, tuple[Callable[[cep.Network], object], str]] = {
    "append": (lambda net: net.model.append(nn.Linear(5, 3)), "model had 4 modules .* now it has 5"),
    "delete": (lambda net: net.model.__delitem__(3), "model had 4 modules .* now it has 3"),
    "insert": (lambda net: net.model.insert(1, nn.Flatten()), r"model\[1\] was replaced"),
    "replace": (lambda net: net.model.__setitem__(2, nn.Linear(6, 6)), r"model\[2\] was replaced"),
    "model": (lambda net: setattr(net, "model", copy.deepcopy(net.model)), "model was replaced"),
    "forward hook": (lambda net: net.model[1].register_forward_hook(print), r"model\[1\] has forward hooks"),
    "pre-hook": (lambda net: net.model.register_forward_pre_hook(print), "model has forward pre hooks"),
    "backward hook": (lambda net: net.model[2].register_full_backward_hook(print), r"model\[2\] has backward hooks"),
    "forward": (lambda net: setattr(net.model[3], "forward", print), r"model\[3\] has a forward of its own"),
    "weight_norm": (lambda net: nn.utils.parametrizations.weight_norm(net.model[1]), r"model\[1\] became a Parametri"),
    "spectral_norm": (lambda net: nn.utils.spectral_norm(net.model[1]), r"model\[1\] has forward pre hooks"),
    "prune": (lambda net: prune.l1_unstructured(net.model[1], "weight", 0.5), r"model\[1\] has forward pre hooks"),
    "flatten": (lambda net: setattr(net.model[0], "start_dim", 2), r"model\[0\] was changed .*start_dim = 2, was 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen_at_the_next_call(change: str) -> None:
    net = cep.Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)), 4)
    rule, x, y = cep.CEP(net, 3, 2, 0.5, lr=0.1), torch.rand(2, 4), torch.tensor([0, 2])
    act, message = CHANGES[change]
    act(net)
    for call in (lambda: net(x), lambda: net.relax(x, 2), lambda: rule.step(x, y), lambda: rule.predict(x, y)):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize(("position", "name", "value"), [(0, "stride", (2, 2)), (1, "kernel_size", 3)])
def test_changed_settings_of_convolutions_are_seen(position: int, name: str, value: object) -> None:
    net, x = cep.convnet((1, 8, 8), (3,), 3, pools="m", fc=(5,)), torch.rand(2, 1, 8, 8)
    setattr(net.model[position], name, value)
    with pytest.raises(TypeError, match=rf"model\[{position}\] was changed after .*{name} = .*, was"):
        net(x)


def test_what_may_change() -> None:
    """Parameters, also by other tensors, devices and numbers; copies, and files of them, work on their own."""
    net, x = cep.mlp(4, 6, 3), torch.rand(2, 4)
    net.load_state_dict({name: p + 0.1 for name, p in net.state_dict().items()}, assign=True)
    net.model[1].weight = nn.Parameter(torch.rand(6, 4))
    wanted = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), wanted)
        other.weights[0].data.zero_()
        assert not torch.equal(other(x), wanted)
    assert torch.equal(net.double()(x.double()).float().round(decimals=4), wanted.round(decimals=4))
