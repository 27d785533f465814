"""The CUDA kernels without a GPU: their unchanged source under cuda_emulation, against the reference and its checks."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest
import test_golden
import torch
from agreement import Results, assert_agreement, errors, results_of
from emulated_device import EmulatedDevice, Refused, compiled_kernels
from last_places import BOUNDS, largest_error
from problems import GOLDEN_NAMES, Problem, random_problem, relative_error
from test_kernels import (
    VARIANTS,
    all_runs,
    assert_activation_is_right,
    assert_both_copies_stay_the_same,
    rates,
)
from test_large_logits import assert_softmax_is_right
from test_not_finite import assert_ops_store_nothing
from test_tolerance import FAMILIES, LIMIT, SIZES, TOLERANCE, assert_tolerances_are_exact
from test_tolerance import name_of as name_of_settings
from torch import Tensor
from variants import TOLERANCES, build, copy_of, name_of

from ceprop_cuda.spec import reference
from ceprop_cuda.spec.dynamics import ACTIVATIONS, Circuit, Nudge

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SOURCE = Path(__file__).parent / "cuda_kernels" / "run_call.cpp"
KERNEL_FILES = sorted((SOURCE.parent.parent.parent / "csrc" / "cuda").glob("*.cuh"))

# Where weights and states lie, and which form C-EP's inner updates take wherever both are exact.
PLACES, FORMS = ["resident", "streamed", "cluster"], ["literal", "low_rank"]
KERNELS = [f"{place}-{form}" for place, form in product(PLACES, FORMS)]
BLOCKS = [1, 3, 7, 132]

Device = Callable[..., EmulatedDevice]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda_kernels")


@pytest.fixture(scope="session")
def plain(folder: Path) -> Path:
    return compiled_kernels("plain", SOURCE, folder)


@pytest.fixture(scope="session")
def asan(folder: Path) -> Path:
    return compiled_kernels("asan", SOURCE, folder)


@pytest.fixture(scope="session")
def race(folder: Path) -> Path:
    return compiled_kernels("race", SOURCE, folder)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest, folder: Path) -> Device:
    """Makes a device for one of KERNELS, with at most so many blocks and more shared memory than any has: so few blocks
    would otherwise not hold so many tiles."""

    def make(kernel: str, blocks: int = 3, name: str = "plain", **settings: Any) -> EmulatedDevice:
        place, form = kernel.split("-")
        chosen = {
            "multiprocessors": blocks,
            "cluster_blocks": min(blocks, 16) if place == "cluster" else 0,
            "resident": place != "streamed",
            "low_rank": form == "low_rank",
            "shared_bytes": 4 << 20,
        }
        return EmulatedDevice(request.getfixturevalue(name), folder, **{**chosen, **settings})

    return make


# --- The same as the reference

# One layer and four, of one unit and of many; one sample, and more than a pass has in float64 (32) or float32 (64).
MORE_SHAPES = [((31, 100), 20), ((3, 33, 1), 1), ((100, 1, 31, 3, 33), 7), ((20, 33, 40, 7), 70), ((9, 20, 7), 40)]
NETWORKS = VARIANTS + [{**VARIANTS[11 * i % 40], "shape": shape} for i, shape in enumerate(MORE_SHAPES)]


def columns(kernel: str, blocks: int, dtype: torch.dtype, variant: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings of a case, by name."""
    place, form = kernel.split("-")
    chosen = {"place": place, "form": form, "blocks": blocks, "dtype": dtype, **variant}
    return [(name, chosen[name]) for name in chosen if name not in ("shape", "readout", "output_activation")]


def kernels_of(variant: dict[str, Any]) -> list[str]:
    has_low_rank = variant["feedback"] == "tied" and variant["schedule"] == "synchronous"
    return [kernel for kernel in KERNELS if has_low_rank or kernel.endswith("literal")]


def rotation() -> Iterator[tuple[str, int, torch.dtype, dict[str, Any]]]:
    """Every network with the kernel, the number of blocks and the dtype that have met its settings least often."""
    seen: Counter = Counter()
    for variant in NETWORKS:
        options = [(*chosen, variant) for chosen in product(kernels_of(variant), BLOCKS, TOLERANCES)]
        case = min(options, key=lambda option: sum(seen[pair] for pair in combinations(columns(*option), 2)))
        seen.update(combinations(columns(*case), 2))
        yield case


ROTATION = [
    *rotation(),
    *((kernel, 3, torch.float32, {**VARIANTS[0], "shape": ((20, 33, 40, 7), 70)}) for kernel in KERNELS[::2]),
]


def name_of_case(value: Any) -> str:
    return name_of(value) if isinstance(value, dict) else str(value).removeprefix("torch.")


def test_the_rotation_meets_every_pair() -> None:
    seen = {pair for case in ROTATION[: len(NETWORKS)] for pair in combinations(columns(*case), 2)}
    possible = {
        pair
        for variant in NETWORKS
        for kernel, blocks, dtype in product(kernels_of(variant), BLOCKS, TOLERANCES)
        for pair in combinations(columns(kernel, blocks, dtype, variant), 2)
    }
    assert seen >= possible


@pytest.mark.parametrize(("kernel", "blocks", "dtype", "variant"), ROTATION, ids=name_of_case)
def test_agreement(device: Device, kernel: str, blocks: int, dtype: torch.dtype, variant: dict[str, Any]) -> None:
    few = dtype == torch.float32 and sum(variant["shape"][0]) * variant["shape"][1] < 300  # see test_kernels.check
    draws = [build(variant, dtype, seed) for seed in range(3 if few else 1)]
    assert_agreement(partial(all_runs, variant), draws, module=device(kernel, blocks))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(device: Device, activation: str, dtype: torch.dtype) -> None:
    """With reciprocals that are one unit in the last place off, or none, as the emulation has them."""
    assert_activation_is_right(device("streamed-literal"), activation, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", BOUNDS)
def test_the_exponential_has_all_its_terms(device: Device, activation: str, dtype: torch.dtype) -> None:
    assert largest_error(device("streamed-literal"), activation, dtype) < BOUNDS[activation]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("readout", [False, True])
def test_softmax_of_large_logits(device: Device, readout: bool, dtype: torch.dtype) -> None:
    assert_softmax_is_right(device("streamed-low_rank"), dtype, readout)


@pytest.mark.parametrize("kernel", [*KERNELS[::2], "streamed-low_rank"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_cases(device: Device, name: str, kernel: str) -> None:
    test_golden.test_step(name, device(kernel, 16))


def least_memory(device: Device, kernel: str, problem: Problem) -> int:
    """Bytes of shared memory that a block must have, but for 64."""
    too_little, enough = 0, 4 << 20
    while enough - too_little > 64:
        middle = (too_little + enough) // 2
        try:
            device(kernel, shared_bytes=middle).relax(problem.circuit, problem.x, 0)
            enough = middle
        except Refused as refused:
            assert "does not fit" in str(refused)
            too_little = middle
    return enough


@pytest.mark.parametrize("kernel", ["resident-literal", "streamed-low_rank", "cluster-literal"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [(((784, 64, 10), 20), torch.float64), (((40, 31, 100, 10), 33), torch.float32)], ids=str
)
def test_little_shared_memory(device: Device, shape: tuple, dtype: torch.dtype, kernel: str) -> None:
    """A product's depth comes in smaller parts."""
    variant = {**VARIANTS[0], "shape": shape}
    problem, nudge = build(variant, dtype)
    ample, tight = device(kernel), device(kernel, shared_bytes=least_memory(device, kernel, problem))
    assert_agreement(partial(all_runs, variant), [(problem, nudge)], module=tight)
    states = [d.relax(problem.circuit, problem.x, 7).states for d in (ample, tight)]
    assert not all(map(torch.equal, *states))  # added up in another order


# --- Phases that end early


@pytest.mark.parametrize("place", ["grid", "cluster"])
@pytest.mark.parametrize("family", FAMILIES, ids=name_of_settings)
def test_phases_end_where_those_of_the_reference_do(device: Device, family: dict[str, Any], place: str) -> None:
    circuit, x, y = random_problem(SIZES, 23, **family)
    nudge, seen = Nudge(y, 0.4), set()
    weights = "cluster" if place == "cluster" else "resident" if family["dynamics"] == "energy" else "streamed"
    emulated = device(f"{weights}-low_rank")
    for tolerance, of_phase in ((1e-2, nudge), (1e-4, None), (1e-6, nudge)):
        wanted, found = (m.relax(circuit, x, LIMIT, None, of_phase, tolerance) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.states, wanted.states, strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
        seen.add(wanted.steps.item())
    assert len(seen) > 1
    phases: dict[str, Any] = {"free_steps": LIMIT, "nudged_steps": LIMIT, "tolerance": TOLERANCE}
    for symmetric in (False, True):
        settings = {**phases, "lr": [0.05, 0.02, 0.01], "symmetric": symmetric}
        wanted, found = (m.cep_step(copy_of(circuit), x, nudge, **settings) for m in (reference, emulated))
        assert torch.equal(found.steps, wanted.steps)
        for a, b in zip(found.circuit.parameters(), wanted.circuit.parameters(), strict=True):
            assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"]
    wanted, found = (m.ep_step(circuit, x, nudge, **phases, symmetric=True) for m in (reference, emulated))
    assert torch.equal(found.steps, wanted.steps)
    for a, b in zip(found.gradients.parameters(), wanted.gradients.parameters(), strict=True):
        assert relative_error(a, b) < TOLERANCES[torch.float64]["floor"] / nudge.beta


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kernel", ["streamed-literal", "cluster-literal"])
def test_tolerances_are_exact(device: Device, kernel: str, dtype: torch.dtype) -> None:
    assert_tolerances_are_exact(device(kernel), dtype)


@pytest.mark.parametrize("kernel", ["resident-literal", "cluster-literal"])
def test_a_tolerance_of_zero_changes_nothing_but_the_time(device: Device, kernel: str) -> None:
    circuit, x, _ = random_problem(SIZES, 23, schedule="asynchronous")
    found = device(kernel).relax(circuit, x, LIMIT, tolerance=0)
    assert found.steps.item() < LIMIT
    assert all(map(torch.equal, found.states, device(kernel).relax(circuit, x, LIMIT).states))


@pytest.mark.parametrize("kernel", ["streamed-literal", "cluster-literal"])
def test_states_that_are_not_finite_never_settle(device: Device, kernel: str) -> None:
    circuit, x, _ = random_problem(SIZES, 7, activation="linear")
    emulated = device(kernel)
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [4]
    x[-1, -1] = float("nan")
    assert emulated.relax(circuit, x, 30, tolerance=1e300).steps.tolist() == [30]


# --- The same bits

SMALL = {**VARIANTS[0], "shape": ((20, 33, 40, 7), 5)}  # of the network
READOUT = {"loss": "cross_entropy", "at": "drive", "readout": True}
# What is different: of the network; of the calls.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {}),
    "readout": (READOUT, {}),
    "symmetric": ({}, {"symmetric": True}),
    "tolerance": ({}, {"tolerance": 1e-3, "free_steps": 9, "nudged_steps": 5}),
    "free feedback": ({"feedback": "free"}, {}),
    "accumulate": ({"feedback": "free"}, {"accumulate": True}),
    "asynchronous energy": ({"dynamics": "energy", "schedule": "asynchronous"}, {}),
    "one step": ({"feedback": "free"}, {"symmetric": True, "accumulate": True, "free_steps": 0, "nudged_steps": 1}),
    "two passes": ({**READOUT, "shape": ((9, 20, 7), 70)}, {}),
}
KERNELS_AND_CALLS = [
    (kernel, what) for what, (of_network, _) in CALLS.items() for kernel in kernels_of({**SMALL, **of_network})
]


def call_every_op(
    device: EmulatedDevice, dtype: torch.dtype, of_network: dict[str, Any], of_calls: dict[str, Any]
) -> list[Tensor]:
    """What one call of each op gives."""
    return call_every_op_on(device, *build({**SMALL, **of_network}, dtype), of_calls)


def call_every_op_on(device: EmulatedDevice, problem: Problem, nudge: Nudge, of_calls: dict[str, Any]) -> list[Tensor]:
    settings = {"free_steps": 2, "nudged_steps": 2, **of_calls}
    accumulate = settings.pop("accumulate", False)
    circuit, x, _ = problem
    relaxed = device.relax(circuit, x, settings["free_steps"], None, nudge, settings.get("tolerance"))
    ep = device.ep_step(circuit, x, nudge, accumulate=accumulate, **settings)
    cep = device.cep_step(copy_of(circuit), x, nudge, lr=rates(circuit), **settings)
    learned = [*results_of(ep, circuit).values(), *results_of(cep, circuit).values()]
    return [*relaxed.states, *chain.from_iterable(learned)]


@pytest.mark.parametrize(
    ("kernel", "what", "precision"),
    [
        *((*chosen, "exact") for chosen in KERNELS_AND_CALLS),
        *product(KERNELS[::2], ["readout", "asynchronous energy"], ["tf32", "bf16"]),
    ],
)
def test_every_order_of_the_threads_gives_the_same_bits(device: Device, kernel: str, what: str, precision: str) -> None:
    emulated = device(kernel, precision=precision)  # under another seed at each call
    first, *others = (call_every_op(emulated, torch.float32, *CALLS[what]) for _ in range(3))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_both_copies_of_tied_weights_stay_the_same(device: Device, kernel: str, schedule: str) -> None:
    assert_both_copies_stay_the_same(device(kernel), schedule)


@pytest.mark.parametrize("network", ["tied", "free", "energy", "readout"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_that_is_not_finite_stores_nothing(device: Device, kernel: str, network: str) -> None:
    assert_ops_store_nothing(device(kernel), network)


# --- Rounded operands

# The largest relative errors against the float64 reference after 8 free steps and 5 nudged ones, of untrained networks
# 40-100-31-10 and 784-64-10 in prototypical (sigmoid) and energy dynamics (hard sigmoid), with 20 and 33 samples:
#            states    EP's gradients    C-EP's parameters
#   exact    1.4e-7    2.6e-6            9.8e-8
#   tf32     1.8e-4    1.8e-3            5.0e-5
#   bf16     7.6e-3    3.4e-2            3.9e-4
# The same wherever weights and states lie. The bounds are two to four times that. The states' least errors were 1.5e-4
# and 1.2e-3: one below a third of them would mean that operands were not rounded.
ROUNDED = {
    "tf32": {"states": 5e-4, "gradients": 5e-3, "parameters": 2e-4, "least": 5e-5},
    "bf16": {"states": 2e-2, "gradients": 1e-1, "parameters": 1e-3, "least": 4e-4},
}


def run_rules(module: Any, circuit: Circuit, x: Tensor, nudge: Nudge) -> Results:
    phases = {"free_steps": 8, "nudged_steps": 5}
    ep = results_of(module.ep_step(circuit, x, nudge, **phases), circuit)
    cep = results_of(module.cep_step(copy_of(circuit), x, nudge, **phases, lr=rates(circuit)), circuit)
    return {"ep states": ep["states"], "gradients": ep["gradients"], **cep}


@pytest.mark.parametrize(
    ("dynamics", "activation", "shape"),
    [("prototypical", "sigmoid", ((40, 100, 31, 10), 20)), ("energy", "hard_sigmoid", ((784, 64, 10), 33))],
)
@pytest.mark.parametrize("kernel", ["resident-low_rank", "streamed-literal", "cluster-literal"])
@pytest.mark.parametrize("precision", ROUNDED)
def test_rounded_operands(
    device: Device, precision: str, kernel: str, dynamics: str, activation: str, shape: tuple
) -> None:
    variant = {**VARIANTS[0], "shape": shape, "dynamics": dynamics, "activation": activation}
    found = errors(run_rules, *build(variant, torch.float32), device(kernel, 16, precision=precision))
    bounds = ROUNDED[precision]
    for kind, (error, _, _) in found.items():
        assert error < bounds[kind.split()[-1]], kind
    assert found["states"][0] > bounds["least"]
    assert found["ep states"][0] > bounds["least"]


# --- Memory and barriers


@pytest.fixture(scope="session")
def barriers_of(device: Device) -> Callable[[str, str], set[str]]:
    """The barriers that a kernel's calls meet, when they run without a report of a race."""

    def run(kernel: str, what: str) -> set[str]:
        met: set[str] = set()
        for seed, dtype in ((0, torch.float32), (10, torch.float64)):
            emulated = device(kernel, name="race", seed=seed)
            call_every_op(emulated, dtype, *CALLS[what])
            met |= emulated.sites
        return met

    return cache(run)


@pytest.mark.parametrize(("kernel", "what"), KERNELS_AND_CALLS)
def test_no_race(barriers_of: Callable[[str, str], set[str]], kernel: str, what: str) -> None:
    assert barriers_of(kernel, what)


@pytest.mark.parametrize(("kernel", "precision"), [*product(KERNELS[::2], ROUNDED)])
def test_no_race_with_rounded_operands(device: Device, kernel: str, precision: str) -> None:
    call_every_op(device(kernel, name="race", precision=precision), torch.float32, *CALLS["readout"])


@pytest.mark.parametrize(("kernel", "what"), [*product(KERNELS[::2], CALLS), *product(KERNELS[1::2], ["tied"])])
def test_no_step_beyond_memory(device: Device, kernel: str, what: str) -> None:
    dtype = (torch.float32, torch.float64)[(KERNELS.index(kernel) // 2 + list(CALLS).index(what)) % 2]
    call_every_op(device(kernel, name="asan"), dtype, *CALLS[what])


@pytest.mark.parametrize("precision", ["exact", *ROUNDED])
@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("resident-low_rank", ((3, 1, 9, 33), 40)),  # whose matrices [40][40] no slack of the workspace holds
        ("streamed-literal", ((31, 100, 1, 33), 7)),
        ("cluster-literal", ((5, 3), 1)),
    ],
)
def test_no_step_beyond_memory_in_other_shapes(device: Device, kernel: str, shape: tuple, precision: str) -> None:
    call_every_op(device(kernel, name="asan", precision=precision), torch.float32, {"shape": shape}, {})


@pytest.mark.parametrize("kernel", KERNELS[::2])
@pytest.mark.parametrize("batch", [5, 32, 64])
def test_no_step_beyond_little_shared_memory(device: Device, batch: int, kernel: str) -> None:
    """Different uses of the room to work in are the largest."""
    network = {**READOUT, "shape": ((9, 20, 7, 5), batch)}
    problem, _ = build({**SMALL, **network}, torch.float32)
    tight = device(kernel, name="asan", shared_bytes=least_memory(device, kernel, problem))
    call_every_op(tight, torch.float32, network, {})


# --- Every barrier is needed, and found missing

# Where kernels wait, and what stands there.
BARRIERS = {
    f"{file.name}:{number}": line
    for file in KERNEL_FILES
    for number, line in enumerate(file.read_text().splitlines(), 1)
    if re.search(r"\bsync\(\)|__sync(threads|warp)", line.split("//")[0])
}
VOTES = [place for place in BARRIERS if "__syncthreads_" in BARRIERS[place]]  # what these find out is not in memory


def test_every_barrier_is_met(barriers_of: Callable[[str, str], set[str]]) -> None:
    assert set.union(*(barriers_of(*chosen) for chosen in KERNELS_AND_CALLS)) == set(BARRIERS)


@pytest.mark.parametrize("exchange", ["grid", "cluster"])
@pytest.mark.parametrize("place", [place for place in BARRIERS if place not in VOTES])
def test_a_missing_barrier_is_reported(
    device: Device, barriers_of: Callable[[str, str], set[str]], place: str, exchange: str
) -> None:
    """By some call of those that meet it with states in global memory, and by some with states in a cluster's."""
    calls = [chosen for chosen in KERNELS_AND_CALLS if chosen[0].startswith("cluster") == (exchange == "cluster")]
    calls.sort(key=lambda chosen: chosen[0].endswith("literal"))  # most barriers are needed in low rank
    meeting = [chosen for chosen in calls if place in barriers_of(*chosen)]
    for kernel, what in meeting:
        try:
            call_every_op(device(kernel, name="race", skipped_site=place), torch.float32, *CALLS[what])
        except Refused as refused:
            assert re.match(r"data race on |map_shared_rank: block \(.* has (already )?exited", str(refused))
            return
    assert not meeting, BARRIERS[place]


@pytest.mark.parametrize("kernel", KERNELS[::2])
@pytest.mark.parametrize("place", VOTES)
def test_a_missing_vote_is_seen(device: Device, place: str, kernel: str) -> None:
    """Where one unit is still on its way, by another number of steps or by threads that part."""
    circuit, x, _ = random_problem(SIZES, 4)
    states = reference.relax(circuit, x, LIMIT).states
    states[-1][-1, -1] += 1
    call = (circuit, x, LIMIT, states, None, 1e-6)
    steps = reference.relax(*call).steps
    assert torch.equal(device(kernel).relax(*call).steps, steps)
    try:
        assert not torch.equal(device(kernel, skipped_site=place).relax(*call).steps, steps)
    except Refused as refused:
        assert re.match("barrier divergence: |deadlock: ", str(refused))
