"""The ways to make a training step that are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..arguments.choices import Backend, EngineName
from ..backends import Engine
from ..networks import Network
from ..spec.dynamics import Nudge
from . import autograd_of_phi
from .by_jax import ByJax
from .cases import Case
from .measure import restore
from .same_algebra import SameAlgebra
from .stepwise import Stepwise

# Makes one step on (x, y) and returns the states at the ends of its phases: continual EP moves the parameters; EP sets
# their gradients, which were cleared before, or moves them, too, by SGD.
Step = Callable[[Tensor, Tensor], list[Tensor]]
Build = Callable[[Case, Network], Step]

# What a GPU can run by, and the rules' name for it.
ENGINES: dict[str, EngineName] = {"teams": "teams", "library": "graph"}


def _by_rule(
    backend: Backend, case: Case, net: Network, engine: EngineName = "auto", gradients_only: bool = True
) -> Step:
    """The package's own rules; see Preset.rule for ``gradients_only``."""
    if case.relaxes_only:
        return lambda x, _: net.relax(x, case.free_steps, backend=backend, engine=engine)
    rule = case.preset.rule(net, backend, gradients_only)
    rule.engine = engine
    learn = rule.step if rule.moves_parameters else rule.backward

    def train(x: Tensor, y: Tensor) -> list[Tensor]:
        net.zero_grad()
        result = learn(x, y)
        return [*result.free_states, *result.nudged_states]

    return train


def by_engine(engine: str, case: Case, net: Network) -> Step:
    """The package's own rules and one of ENGINES; "": as chosen."""
    return _by_rule("fused", case, net, ENGINES.get(engine, "auto"))


def _by_engine(engine: Engine, case: Case, net: Network) -> Step:
    """What the rules do around an engine, without the checks of arguments."""
    preset = case.preset
    shared = net.circuit()
    circuit = replace(
        shared,
        weights=[w.detach() for w in shared.weights],
        biases=[None if b is None else b.detach() for b in shared.biases],
        free_feedback=None if shared.free_feedback is None else [v.detach() for v in shared.free_feedback],
    )

    @torch.no_grad()
    def train(x: Tensor, y: Tensor) -> list[Tensor]:
        obstacle = engine.obstacle(circuit, x, preset.gate)
        if obstacle is not None:
            raise ValueError(obstacle)
        if case.relaxes_only:
            return engine.relax(circuit, x, case.free_steps).states
        nudge = Nudge(y, preset.beta, preset.nudge_at or "state")
        steps = {"free_steps": case.free_steps, "nudged_steps": case.nudged_steps}
        if preset.continual:
            stepped = engine.cep_step(circuit, x, nudge, **steps, lr=preset.lr)
            return [*stepped.free_states, *stepped.nudged_states[0]]
        result = engine.ep_step(circuit, x, nudge, **steps)
        for p, gradient in zip(shared.parameters(), result.gradients.parameters(), strict=True):
            p.grad = gradient
        return [*result.free_states, *result.nudged_states[0]]

    return train


def _compiled() -> Build:
    """torch.compile of the reference, one step at a time: a whole phase would be unrolled, hundreds of steps long."""
    torch.compiler.reset()  # what other cases left counts against the limit of graphs per function
    return partial(_by_engine, Stepwise(partial(torch.compile, dynamic=False, fullgraph=True)))


def _in_graph(case: Case, net: Network) -> Step:
    """The reference's operations in a CUDA graph: the first call captures it, all others replay it on its inputs."""
    train = _by_engine(Stepwise(), case, net)
    graph = torch.cuda.CUDAGraph()
    states: list[Tensor] = []

    def replay(x: Tensor, y: Tensor) -> list[Tensor]:
        if not states:
            start = copy.deepcopy(net)
            train(x, y)  # what libraries set up at their first call cannot be captured
            restore(net, start)
            try:
                with torch.cuda.graph(graph):
                    captured = train(x, y)
            except Exception as error:
                raise error.__context__ or error from None  # what broke the capture, not that it ended broken
            states.extend(captured)
        graph.replay()
        return states

    return replay


AUTOGRAD_OF_PHI = Stepwise(
    step=autograd_of_phi.step,
    learning_step=autograd_of_phi.learning_step,
    gradients=autograd_of_phi.gradients,
)

# By name. A contender is made anew for each measurement, so that nothing compiled outlives the number of threads that
# it was compiled for.
CONTENDERS: dict[str, Callable[[], Build]] = {
    "fused": lambda: partial(_by_rule, "fused"),
    "eager": lambda: partial(_by_rule, "reference"),
    "compile": _compiled,
    "same_algebra": lambda: partial(_by_engine, SameAlgebra()),
}
# fused_sgd does what jax does of EP.
CONTENDERS_ON_CPU: dict[str, Callable[[], Build]] = {
    "fused_sgd": lambda: partial(_by_rule, "fused", gradients_only=False),
    "jax": lambda: ByJax,
    "jax_gram": lambda: partial(ByJax, gram=True),
}
# The rules of those that are not for all of them, see Case.rule.
OF_RULES = {"fused_sgd": ("EP",), "jax_gram": ("C-EP", "C-VF")}
# Those that know dense layers only, and what there is for convolutions in their place.
OF_DENSE_LAYERS = ("same_algebra", *CONTENDERS_ON_CPU)
CONTENDERS_OF_CONVOLUTIONS: dict[str, Callable[[], Build]] = {
    "autograd": lambda: partial(_by_engine, AUTOGRAD_OF_PHI),
}
CONTENDERS_ON_CUDA: dict[str, Callable[[], Build]] = {
    "graph": lambda: _in_graph,
    "library": lambda: partial(by_engine, "library"),  # where "fused" runs by teams
}

# What these are made of fails in as many ways as there are machines that lack something it needs.
MAY_FAIL = ("compile", "graph", "jax", "jax_gram")


def contenders(device: str, convolutional: bool = False, rule: str = "") -> dict[str, Build]:
    """Those that run on ``device``, by name; without a ``rule`` none that are of some rules only."""
    makers = dict(CONTENDERS)
    if device == "cpu":
        makers |= {name: make for name, make in CONTENDERS_ON_CPU.items() if rule in OF_RULES.get(name, (rule,))}
    if convolutional:
        makers = {name: make for name, make in makers.items() if name not in OF_DENSE_LAYERS}
        makers |= CONTENDERS_OF_CONVOLUTIONS
    if device == "cuda":
        makers |= CONTENDERS_ON_CUDA
    return {name: make() for name, make in makers.items()}
