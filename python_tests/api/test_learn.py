"""Many batches in one call: what ``rule.learn`` takes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_network import network
from torch import Tensor

import ceprop_cuda as cep
from ceprop_cuda.data import Batches, Normalisation

Rule = cep.EP | cep.CEP
RULES: dict[str, Callable[..., Rule]] = {
    "EP": lambda net, **settings: cep.EP(net, 6, 4, 0.4, lr=(0.2, 0.1, 0.05), momentum=0.9, **settings),
    "CEP": lambda net, **settings: cep.CEP(net, 6, 4, 0.4, lr=(0.2, 0.1, 0.05), weight_decay=0.01, **settings),
}
BACKENDS = ["auto", "reference"]
SAMPLES, BATCH, COUNT = 20, 4, 5


def data() -> tuple[Tensor, Tensor, Tensor]:
    """x ``(S, 6)``, classes ``(S,)`` and an order ``(N, B)``."""
    order = torch.stack([torch.randperm(SAMPLES)[:BATCH] for _ in range(COUNT)])
    return torch.rand(SAMPLES, 6, dtype=torch.float64), torch.randint(3, (SAMPLES,)), order


def pair(name: str, **settings: Any) -> tuple[Rule, Rule]:
    """The same rule on two networks that are the same."""
    net = network()
    return RULES[name](net, **settings), RULES[name](copy.deepcopy(net), **settings)


def assert_same_networks(a: Rule, b: Rule) -> None:
    for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_it_is_a_step_for_each_batch(name: str, backend: str) -> None:
    for nudging in ("positive", "random_sign", "symmetric"):
        one, many = pair(name, backend=backend, nudging=nudging)
        before = copy.deepcopy(many.net)
        x, y, order = data()
        torch.manual_seed(1)
        steps = [one.step(x[batch], y[batch]) for batch in order]
        torch.manual_seed(1)
        learned = many.learn(x, y, order)
        assert_same_networks(one, many)
        assert not torch.equal(before.weights[0], many.net.weights[0])
        torch.testing.assert_close(learned.loss, torch.stack([step.loss for step in steps]).double())
        wrong = [int((step.output.argmax(1) != step.target.argmax(1)).sum()) for step in steps]
        assert learned.wrong.tolist() == wrong
        assert learned.steps.tolist() == [step.steps.tolist() for step in steps]
        for phase in ("free_states", "nudged_states", "nudged_minus_states"):
            for a, b in zip(getattr(learned, phase), getattr(steps[-1], phase), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ep_moves_as_torch_does(backend: str) -> None:
    rule, _ = pair("EP", backend=backend, weight_decay=0.02)
    net = copy.deepcopy(rule.net)
    by_torch = cep.EP(net, 6, 4, 0.4, backend=backend)
    groups = cep.training.groups_of(net, (0.2, 0.1, 0.05))
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.02)
    x, y, order = data()
    for batch in order:
        net.zero_grad()
        by_torch.backward(x[batch], y[batch])
        optimizer.step()
    rule.learn(x, y, order)
    for p, q in zip(rule.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        kept, wanted = rule.optimizer.state[p]["momentum_buffer"], optimizer.state[q]["momentum_buffer"]
        torch.testing.assert_close(kept, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_rates_and_signs_of_each_batch(name: str, backend: str) -> None:
    one, many = pair(name, backend=backend)
    x, y, order = data()
    rates = torch.rand(COUNT, 3, dtype=torch.float64) / 10
    signs = torch.tensor([1, -1, -1, 1, -1])
    for batch, lr, sign in zip(order, rates.tolist(), signs.tolist(), strict=True):
        one.lr, one.beta = lr, 0.4 * sign
        one.step(x[batch], y[batch])
    many.learn(x, y, order, rates=rates, signs=signs)
    assert_same_networks(one, many)
    assert many.lr == (0.2, 0.1, 0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_what_requires_no_grad_stays(name: str, backend: str) -> None:
    one, many = pair(name, backend=backend)
    x, y, order = data()
    for rule in (one, many):
        for p in (rule.net.weights[1], rule.net.biases[1]):
            p.requires_grad_(False)
    before = copy.deepcopy(many.net)
    for batch in order:
        one.step(x[batch], y[batch])
    many.learn(x, y, order)
    assert_same_networks(one, many)
    assert torch.equal(before.weights[1], many.net.weights[1])
    assert not torch.equal(before.weights[2], many.net.weights[2])
    many.net.biases[1].requires_grad_(True)
    with pytest.raises(ValueError, match="some parameters of connection 1 require grad and others do not"):
        many.learn(x, y, order)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 2, 3), (6,)])
def test_bytes_are_scaled(shape: tuple[int, ...], backend: str) -> None:
    as_bytes = torch.randint(256, (SAMPLES, *shape), dtype=torch.uint8)
    _, y, order = data()
    cases: list[tuple[Normalisation | None, Tensor]] = [(None, as_bytes.double() / 255)]
    if len(shape) == 3:
        channels = shape[0]
        normalise = Normalisation((0.4, 0.5)[:channels], (0.2, 0.3)[:channels], torch.float64)
        cases.append((normalise, normalise(as_bytes)))
    for normalise, x in cases:
        one, many = pair("CEP", backend=backend)
        one.learn(x.flatten(1), y, order)
        many.learn(as_bytes.flatten(1) if normalise is None else as_bytes, y, order, normalise=normalise)
        assert_same_networks(one, many)


def test_bytes_of_images_for_convolutions() -> None:
    net = cep.convnet((3, 8, 8), (4,), 3, fc=(5,))
    images = torch.randint(256, (SAMPLES, 3, 8, 8), dtype=torch.uint8)
    y, order = torch.randint(5, (SAMPLES,)), data()[2]
    normalise = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    one, many = cep.CEP(net, 5, 3, 0.4, 0.01), cep.CEP(copy.deepcopy(net), 5, 3, 0.4, 0.01)
    for batch in order:
        one.step(normalise(images[batch]), y[batch])
    many.learn(images, y, order, normalise=normalise)
    assert_same_networks(one, many)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("name", RULES)
def test_a_batch_that_is_not_finite_ends_the_call(name: str, bad: int, backend: str) -> None:
    one, many = pair(name, backend=backend)
    x, y, _ = data()
    order = torch.arange(SAMPLES).view(COUNT, BATCH)
    x[order[bad, 1], 2] = torch.nan
    for batch in order[:bad]:
        one.step(x[batch], y[batch])
    with pytest.raises(cep.Diverged, match=f"^batch {bad + 1} of this call: the inputs hold NaN") as caught:
        many.learn(x, y, order)
    assert caught.value.batch == bad
    assert_same_networks(one, many)
    if name == "EP" and bad:
        for p, q in zip(one.net.parameters(), many.net.parameters(), strict=True):
            assert torch.equal(one.optimizer.state[p]["momentum_buffer"], many.optimizer.state[q]["momentum_buffer"])


@pytest.mark.parametrize("readout", [None, "softmax"])
@pytest.mark.parametrize("name", RULES)
def test_an_interrupt_ends_a_call_between_batches(name: str, readout: str | None) -> None:
    net = cep.mlp(50, 60, 40, 10, readout=readout)
    before = copy.deepcopy(net)
    rule = RULES[name](net)
    x, y, count = torch.rand(50, 50), torch.randint(10, (50,)), 200_000
    order = torch.randint(50, (count, 20))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            rule.learn(x, y, order)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    # The network is where a whole number of batches leads to.
    again = RULES[name](before)
    batches = iter(order)
    for _ in range(count):
        if all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True)):
            break
        again.learn(x, y, next(batches)[None])
    else:
        pytest.fail("no number of batches leads to these parameters")
    assert not torch.equal(net.weights[0], cep.mlp(50, 60, 40, 10, readout=readout).weights[0])


WRONG: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], type[Exception], str]] = {
    "order too large": (
        lambda x, y, o: (x, y, o + SAMPLES),
        ValueError,
        r"order must hold numbers of samples, 0 .. 19",
    ),
    "order negative": (lambda x, y, o: (x, y, -1 - o), ValueError, r"order must hold numbers of samples"),
    "order flat": (lambda x, y, o: (x, y, o[0]), ValueError, r"order must be \(N, B\) int64.*got \(4,\)"),
    "order empty": (lambda x, y, o: (x, y, o[:0]), ValueError, r"order must be \(N, B\) int64.*got \(0, 4\)"),
    "order floats": (lambda x, y, o: (x, y, o.double()), TypeError, r"order must be \(N, B\) int64, got torch.float64"),
    "order a list": (lambda x, y, o: (x, y, o.tolist()), TypeError, r"order must be \(N, B\) int64, got \[\["),
    "x of another shape": (lambda x, y, o: (x[:, :5], y, o), ValueError, r"x must be \(B, 6\)"),
    "x of another dtype": (lambda x, y, o: (x.float(), y, o), TypeError, r"x must be torch.float64"),
    "y too short": (lambda x, y, o: (x, y[1:], o), ValueError, r"class indices \(20,\) int64"),
    "y no classes": (lambda x, y, o: (x, y + 3, o), ValueError, r"class indices.* must lie in 0 .. 2"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_change_nothing(wrong: str, name: str, backend: str) -> None:
    rule, other = pair(name, backend=backend)
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        rule.learn(*change(*data()))
    if wrong != "y no classes" or backend != "reference":  # the reference looks at a batch when it comes to it
        assert_same_networks(rule, other)


def test_wrong_rates_and_signs() -> None:
    rule, other = pair("CEP")
    for settings, message in (
        ({"rates": torch.rand(COUNT, 2)}, r"rates must be \(5, 3\), a rate of each batch and connection, got \(5, 2\)"),
        ({"rates": torch.full((COUNT, 3), -1.0)}, "rates must be finite numbers >= 0"),
        ({"signs": torch.ones(COUNT + 1)}, "signs must be 1 or -1 for each of 5 batches"),
        ({"signs": torch.full((COUNT,), 0.5)}, "signs must be 1 or -1"),
        ({"normalise": Normalisation((0.1,), (0.2,))}, "x must be torch.uint8, got torch.float64"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            rule.learn(*data(), **settings)
    assert_same_networks(rule, other)


def test_ep_without_rates_moves_nothing() -> None:
    rule = cep.EP(network(), 6, 4, 0.4)
    x, y, order = data()
    assert rule.lr is None and rule.optimizer is None and not rule.moves_parameters
    for call in (lambda: rule.learn(x, y, order), lambda: rule.step(x[:3], y[:3])):
        with pytest.raises(ValueError, match="EP moves no parameters without lr="):
            call()
    with pytest.raises(ValueError, match="momentum is of the rule's own steps, which need lr="):
        cep.EP(network(), 6, 4, 0.4, momentum=0.9)
    assert "lr" not in rule.settings()  # runs from before there were rates are resumed
    rule.lr = 0.1
    assert rule.lr == (0.1, 0.1, 0.1) and rule.moves_parameters
    assert rule.settings()["lr"] == (0.1, 0.1, 0.1)
    rule.learn(x, y, order)


@pytest.mark.parametrize("name", RULES)
def test_a_trainer_takes_many_batches_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = data()
    calls, one, many = [], *pair(name, nudging="random_sign")
    learn = cep.training.MovingRule.learn
    monkeypatch.setattr(cep.training.MovingRule, "learn", lambda *a, **k: calls.append(len(a[3])) or learn(*a, **k))
    histories = []
    for rule, batches in ((many, Batches(x, y, 3, True, 7)), (one, list(Batches(x, y, 3, True, 7)))):
        torch.manual_seed(3)
        histories.append(cep.Trainer(rule).fit(batches, 1, progress=False)[0] | {"seconds": 0})
    assert sum(calls) == 7 and len(calls) < 7  # six of three samples, one of two
    assert_same_networks(one, many)
    assert histories[0].pop("train_loss") == pytest.approx(histories[1].pop("train_loss"))
    assert histories[0] == histories[1]


def test_a_trainer_steps_by_a_step_of_the_users_own() -> None:
    class Counting(cep.CEP):
        steps = 0

        def step(self, x: Tensor, y: Tensor) -> cep.StepResult:
            type(self).steps += 1
            return super().step(x, y)

    x, y, _ = data()
    cep.Trainer(Counting(network(), 6, 4, 0.4, 0.1)).fit(Batches(x, y, 5), 2, progress=False)
    assert Counting.steps == 8


def test_a_trainer_names_the_batch_that_diverges() -> None:
    x, y, _ = data()
    x[13] = torch.inf
    rule, _ = pair("CEP")
    with pytest.raises(cep.Diverged, match=r"^epoch 1, batch 4: the inputs hold NaN or infinite"):
        cep.Trainer(rule).fit(Batches(x, y, 4), 1, progress=False)
