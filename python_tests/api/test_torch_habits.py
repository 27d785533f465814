"""What torch's users do around a network: settings set later, frozen parameters, hooks, autocast, transforms."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import relative_error
from small_network import batch, network
from torch import Tensor, nn

import ceprop_cuda as cep

Rule = cep.EP | cep.CEP | cep.BPTT
RULES: dict[str, Callable[..., Rule]] = {
    "EP": lambda net, **settings: cep.EP(net, 20, 5, 0.2, **settings),
    "CEP": lambda net, **settings: cep.CEP(net, 20, 5, 0.2, lr=0.1, **settings),
    "BPTT": lambda net, **settings: cep.BPTT(net, 20, 5, **settings),
}
WITH_GRADIENTS = ["EP", "BPTT"]


def learn(rule: Rule, x: Tensor, y: Tensor) -> Any:
    return rule.step(x, y) if isinstance(rule, cep.CEP) else rule.backward(x, y)


# --- Settings of a rule


WRONG_SETTINGS = [
    ("EP", "nudging", "symetric", "nudging must be one of 'positive', .* got 'symetric'"),
    ("EP", "beta", 0.0, "beta must be a finite number other than 0"),
    ("EP", "beta", math.nan, "beta must be a finite number"),
    ("EP", "nudged_steps", 0, "nudged_steps must be an int >= 1"),
    ("EP", "free_steps", 2.5, "free_steps must be an int >= 0"),
    ("EP", "accumulate", "yes", "accumulate must be one of"),
    ("EP", "shared_update", True, "shared_update=True needs a network with feedback='free'"),
    ("EP", "nudge_at", "output", "nudge_at must be one of"),
    ("EP", "loss", "cross_entropy", "loss='cross_entropy' needs output_activation='linear'"),
    ("EP", "backend", "cuda", "backend must be one of"),
    ("EP", "precision", "half", "precision must be one of"),
    ("EP", "tolerance", -1.0, "tolerance must be None or a finite number >= 0"),
    ("CEP", "lr", (0.1,), r"lr must hold 3 rates, input side first, got 1"),
    ("CEP", "lr", -0.1, r"lr\[0\] must be a finite number >= 0"),
    ("CEP", "lr", (0.1, math.inf, 0.1), r"lr\[1\] must be a finite number >= 0"),
    ("CEP", "weight_decay", -1e-4, "weight_decay must be a finite number >= 0"),
    ("CEP", "update", "lowrank", "update must be one of"),
    ("BPTT", "unrolled_steps", 21, "unrolled_steps must be at most free_steps=20, got 21"),
    ("BPTT", "free_steps", 4, "unrolled_steps must be at most free_steps=4, got 5"),
]


@pytest.mark.parametrize(("name", "setting", "value", "message"), WRONG_SETTINGS)
def test_wrong_settings_are_refused_by_the_next_call(name: str, setting: str, value: object, message: str) -> None:
    net, (x, y) = network(), batch()
    rule = RULES[name](net)
    before, parameters = getattr(rule, setting), copy.deepcopy(list(net.parameters()))
    setattr(rule, setting, value)
    trained = cep.Trainer(rule, None if name == "CEP" else torch.optim.SGD(net.parameters(), 0.1))
    for call in (lambda: learn(rule, x, y), lambda: rule.predict(x, y), lambda: trained.fit([(x, y)], 1)):
        with pytest.raises(ValueError, match=message):
            call()
    assert all(map(torch.equal, net.parameters(), parameters))
    setattr(rule, setting, before)
    learn(rule, x, y)


def test_settings_that_fit_together_may_be_set_one_after_the_other() -> None:
    rule = RULES["BPTT"](network())
    rule.free_steps, rule.unrolled_steps = 4, 3
    assert rule.backward(*batch()).steps.tolist() == [4]


def test_wrong_settings_are_refused_at_once_when_a_rule_is_made() -> None:
    with pytest.raises(ValueError, match="nudging must be one of"):
        RULES["EP"](network(), nudging="symetric")


def test_settings_may_change_between_steps() -> None:
    net, (x, y) = network(), batch()
    rule, other = RULES["CEP"](copy.deepcopy(net)), cep.CEP(net, 10, 3, -0.3, lr=(0.0, 0.2, 0.1), nudging="symmetric")
    rule.free_steps, rule.nudged_steps, rule.beta, rule.lr, rule.nudging = 10, 3, -0.3, [0.0, 0.2, 0.1], "symmetric"
    rule.step(x, y)
    other.step(x, y)
    assert all(map(torch.equal, rule.net.parameters(), net.parameters()))
    rule.lr = 0.05
    assert rule.lr == (0.05,) * 3


@pytest.mark.parametrize("name", RULES)
def test_rules_say_what_network_they_want(name: str) -> None:
    net = network()
    for given, message in (
        (nn.DataParallel(net), "got a DataParallel around one: give its .module"),
        (net.model, r"got Sequential: make one of it by Network\(model, input_shape\)"),
        (None, "got NoneType"),
    ):
        with pytest.raises(TypeError, match=f"net must be a ceprop_cuda.Network, {message}"):
            RULES[name](given)


# --- What does not learn


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_continual_ep_leaves_frozen_connections_as_they_are(backend: str) -> None:
    net, (x, y) = network(feedback="free"), batch()
    by_rate = copy.deepcopy(net)
    for p in (net.weights[1], net.biases[1], net.feedback[1]):
        p.requires_grad_(False)
    cep.CEP(net, 20, 5, 0.2, lr=0.1, weight_decay=0.1, backend=backend).step(x, y)
    cep.CEP(by_rate, 20, 5, 0.2, lr=(0.1, 0.0, 0.1), weight_decay=0.1, backend=backend).step(x, y)
    assert all(map(torch.equal, net.parameters(), by_rate.parameters()))


@pytest.mark.parametrize("part", ["weights", "biases", "feedback"])
def test_continual_ep_refuses_a_connection_that_is_frozen_in_part(part: str) -> None:
    net, (x, y) = network(feedback="free"), batch()
    before = copy.deepcopy(net)
    getattr(net, part)[1].requires_grad_(False)
    with pytest.raises(ValueError, match="some parameters of connection 1 require grad and others do not"):
        RULES["CEP"](net).step(x, y)
    assert all(map(torch.equal, net.parameters(), before.parameters()))


@pytest.mark.parametrize("name", RULES)
def test_a_network_of_which_nothing_learns_is_refused(name: str) -> None:
    net, (x, y) = network().requires_grad_(False), batch()
    with pytest.raises(ValueError, match="no parameter of the network requires grad"):
        learn(RULES[name](net), x, y)


@pytest.mark.parametrize("name", RULES)
def test_learning_within_inference_mode_is_refused(name: str) -> None:
    net, (x, y) = network(), batch()
    rule = RULES[name](net)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"learning within torch.inference_mode\(\)"):
        learn(rule, x, y)
    assert all(p.grad is None for p in net.parameters())


# --- Hooks of parameters


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_hooks_of_parameters_are_run(name: str) -> None:
    """A mask of gradients, and an optimizer in backward."""
    plain, (x, y) = network(), batch()
    net, seen = copy.deepcopy(plain), []
    mask = torch.rand_like(net.weights[0]).round()
    net.weights[0].register_hook(lambda gradient: gradient * mask)
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.clone())))
    for model in (plain, net):
        for _ in range(2):  # the second adds to the first
            learn(RULES[name](model), x, y)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad * mask if p is net.weights[0] else q.grad)
    assert [sum(p is q for q, _ in seen) for p in net.parameters()] == [2] * 6
    assert torch.equal(seen[-1][1], seen[-1][0].grad)


def test_hooks_of_distributed_data_parallel_are_run(tmp_path: Path) -> None:
    """They are those of a module's parameters, which a rule does not see. A process group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net, (x, y) = network(), batch()
        plain = copy.deepcopy(net)
        ddp = nn.parallel.DistributedDataParallel(net)

        def halve(_, bucket):  # type: ignore[no-untyped-def]
            future = torch.futures.Future()
            future.set_result(bucket.buffer() / 2)
            return future

        ddp.register_comm_hook(None, halve)
        ddp(x)
        RULES["EP"](net).backward(x, y)
        RULES["EP"](plain).backward(x, y)
    finally:
        torch.distributed.destroy_process_group()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad / 2)


# --- Autocast, default devices, transforms


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", RULES)
def test_autocast_changes_nothing(name: str, backend: str) -> None:
    plain, (x, y) = network(readout="softmax").float(), batch()
    x, found = x.float(), []
    for enabled in (False, True):
        net = copy.deepcopy(plain)
        rule = RULES[name](net, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            predicted, result, output = rule.predict(x, y), learn(rule, x, y), net(x)
        learned = [*net.parameters(), *(p.grad for p in net.parameters() if p.grad is not None)]
        found.append([predicted.output, result.output, output, *learned])
    assert all(map(torch.equal, *found))
    assert all(tensor.dtype == torch.float32 for tensor in found[1])


def test_another_default_device_changes_nothing() -> None:
    """What the library draws and counts by lies on the CPU, or where the network is."""
    from ceprop_cuda.data import load
    from ceprop_cuda.theorem import compare

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        data = load("digits")
        x, y = next(iter(data.train_batches(10, augmented=True)))
        ep, free = cep.EP(net, 5, 3, 0.5, nudging="random_sign"), copy.deepcopy(with_angle)
        free.set_angle(30.0)
        found = compare(cep.EP(net, 10, 3, 0.5), x.flatten(1), y)
        courses = [match.agreement.rmse for match in found.matches]
        return [x, y, ep.backward(x.flatten(1), y).loss, *free.parameters(), torch.tensor(courses, device="cpu")]

    net, with_angle = cep.mlp(64, 20, 10), cep.mlp(64, 20, 10, feedback="free")
    wanted = run()
    torch.set_default_device("meta")
    try:
        found = run()
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, wanted))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(lambda one: f(one[None])[0])(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_functions_are_the_references(transform: str) -> None:
    net, (x, _) = network(), batch()
    found, wanted = (
        TRANSFORMS[transform](lambda x: net.relax(x, 20, backend=backend)[-1], x)  # noqa: B023
        for backend in ("auto", "reference")
    )
    assert wanted.abs().max() > 0
    assert relative_error(found, wanted) < 1e-12
    with pytest.raises(cep.backends.FusedUnavailable, match=r"transforms of torch\.func"):
        TRANSFORMS[transform](lambda x: net.relax(x, 20, backend="fused")[-1], x)


def test_dual_numbers_are_the_references() -> None:
    net, (x, _) = network(), batch()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        found, wanted = (
            torch.autograd.forward_ad.unpack_dual(net.relax(dual, 20, backend=backend)[-1]).tangent
            for backend in ("auto", "reference")
        )
    assert wanted.abs().max() > 0
    assert torch.equal(found, wanted)


def test_deterministic_algorithms_change_nothing() -> None:
    net, (x, y) = network(), batch()
    plain = copy.deepcopy(net)
    torch.use_deterministic_algorithms(True)
    try:
        RULES["CEP"](net).step(x, y)
    finally:
        torch.use_deterministic_algorithms(False)
    RULES["CEP"](plain).step(x, y)
    assert all(map(torch.equal, net.parameters(), plain.parameters()))
    assert F.mse_loss(net(x), plain(x)) == 0


# --- A trainer's network and optimizer


def trainer() -> tuple[cep.Trainer, list[tuple[Tensor, Tensor]]]:
    net = network()
    return cep.Trainer(RULES["EP"](net), torch.optim.SGD(net.parameters(), 0.1)), [batch()]


def test_parameters_that_were_replaced_are_seen_before_the_next_batch() -> None:
    """The optimizer would step on the old ones."""
    training, batches = trainer()
    net = training.rule.net
    training.fit(batches, 1)

    class Replacing(list):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from super().__iter__()
            net.load_state_dict({name: p.clone() for name, p in net.state_dict().items()}, assign=True)
            yield from super().__iter__()

    for given in (Replacing(batches), batches):
        with pytest.raises(ValueError, match=r"the optimizer does not hold the network's model\.1\.weight"):
            training.fit(given, 1)


def test_a_trainer_of_which_nothing_learns_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    training, batches = trainer()
    training.rule.net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the network requires grad"):
        training.fit(batches, 1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_optimizers_that_need_a_closure_are_refused() -> None:
    net = network()
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times a step, by a closure"):
        cep.Trainer(RULES["EP"](net), torch.optim.LBFGS(net.parameters()))
    for optimizer in (torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop):
        cep.Trainer(RULES["EP"](net), optimizer(net.parameters()))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            lambda x, y: [{"image": x, "label": y}],
            r"must be a pair \(x, y\), got a mapping with the keys 'image', 'label'",
        ),
        (lambda x, y: [(x, y, y)], r"must be a pair \(x, y\), got 3 parts"),
        (lambda x, y: [(x,)], r"must be a pair \(x, y\), got 1 parts"),
        (lambda x, y: (x, y), r"train_batches must give batches \(x, y\), got tensors alone"),
        (lambda x, y: x, r"train_batches must give batches \(x, y\), got a Tensor"),
        (lambda x, y: {"x": x}, r"train_batches must give batches \(x, y\), got a dict"),
        (
            lambda x, y: torch.utils.data.DataLoader([{"a": 1.0}]),
            r"epoch 1, batch 1 must be a pair \(x, y\), got a map",
        ),
        (lambda x, y: [(x.numpy(), y)], r"x must be a torch.Tensor, got ndarray"),
        (lambda x, y: [(x, y.numpy())], r"the target must be class indices .* got ndarray"),
        (lambda x, y: [(x.to_sparse(), y)], r"x must be a dense tensor, got one of layout torch.sparse_coo"),
    ],
)
def test_batches_that_are_no_pairs_are_named(batches: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        trainer()[0].fit(batches(*batch()), 1)


def test_regression_has_no_error_in_percent() -> None:
    x, y = batch()
    for target, error in ((torch.rand(3, 3).double(), None), (F.one_hot(y, 3).double(), float), (y, float)):
        training, _ = trainer()
        metrics = training.fit([(x, target)], 1, test=[(x, target)])[0]
        for found in (metrics["train_error"], metrics["test_error"], training.evaluate([(x, target)])["error"]):
            assert found is None if error is None else isinstance(found, float)
    net = cep.mlp(6, 4, 1, output_activation="linear").double()
    one = cep.Trainer(cep.CEP(net, 9, 3, 0.5, lr=0.1)).fit([(x, torch.ones(3, 1).double())], 1)
    assert one[0]["train_error"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite_are_named(value: float) -> None:
    x, y = batch()
    target = F.one_hot(y, 3).double()
    target[1, 2] = value
    training, batches = trainer()
    with pytest.raises(cep.Diverged, match="the target holds NaN or infinite values"):
        training.fit([(x, target)], 1)
    training, _ = trainer()
    with pytest.raises(cep.Diverged, match="test after epoch 1, batch 1: the target holds NaN or infinite"):
        training.fit(batches, 1, test=[(x, target)])


def test_persistent_workers_cannot_be_resumed(tmp_path: Path) -> None:
    training, batches = trainer()
    pairs = torch.utils.data.TensorDataset(*batches[0])
    loader = torch.utils.data.DataLoader(pairs, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers=True cannot be resumed"):
        training.fit(loader, 1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_bar_goes_into_a_file(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    training, batches = trainer()
    training.fit(batches, 2)
    assert capfd.readouterr().err == ""
    training.fit(batches, 1, progress=True)
    assert "epoch 1/1" in capfd.readouterr().err
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        assert len(training.fit(batches, 1)) == 1
