"""A prediction of what the CUDA kernels take, from their source and from numbers of data sheets. Nothing is measured.

    python benchmarks/cuda_model.py            # the tables
    python benchmarks/cuda_model.py --update   # and puts them below the text of cuda_model.md, which explains them

Follows the busiest block of a launch through a training step: what it brings through L2, reads and writes in shared
memory, multiplies, and how often all of its threads wait for one load; then the barriers.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ceprop_cuda import _C
from ceprop_cuda.bench.cases import BATCH_SIZES, Case, all_cases
from ceprop_cuda.bench.contenders import CONTENDERS
from ceprop_cuda.presets import PRESETS, Preset

# --- Devices


def constant(unit: str, source: str) -> Any:
    """A field of a device: its unit, and whose number it is."""
    return field(metadata={"unit": unit, "source": source})


VENDOR, PLANNER = "vendor's data", "assumption of launch_plan.h"
ASSUMED = "assumption"


@dataclass(frozen=True)
class Device:
    """A GPU, as far as the model knows it."""

    name: str
    compute_capability: int
    multiprocessors: int = constant("", VENDOR)
    block_shared_bytes: int = constant("bytes a block may have", VENDOR)
    cluster_blocks: int = constant("blocks, if each takes all of that", ASSUMED)
    gigahertz: float = constant("GHz, highest", VENDOR)
    lanes: int = constant("FP32 multiply-adds a clock and multiprocessor", VENDOR)
    tf32: int = constant("tensor-core multiply-adds a clock and multiprocessor, tf32", VENDOR)
    bf16: int = constant("the same, bfloat16", VENDOR)
    shared_rate: int = constant("bytes of shared memory a clock and multiprocessor", VENDOR)
    l2_rate: int = constant("bytes through L2 a clock", "vendor's data of A100, assumed of H100")
    l2_rate_of_one: int = constant("the same of one multiprocessor, also from another's shared memory", ASSUMED)
    shared_wait: int = constant("clocks until a load from shared memory or L1 is there", ASSUMED)
    l2_wait: int = constant("clocks until a load from L2 is there", ASSUMED)
    remote_wait: int = constant("clocks until a load from another block's shared memory is there", ASSUMED)
    owner_wait: int = constant("clocks to ask whether a block owns a row", ASSUMED)
    tensor_wait: int = constant("clocks of a tile's tensor-core instructions, one after the other", ASSUMED)
    block_barrier: int = constant("clocks of a block's barrier", ASSUMED)
    grid_barrier_us: float = constant("us of a barrier of all blocks", PLANNER)
    cluster_barrier_us: float = constant("us of a cluster's barrier", PLANNER)
    launch_us: float = constant("us of the launch", ASSUMED)


A100 = Device(
    name="A100",
    compute_capability=80,
    multiprocessors=108,
    block_shared_bytes=163 << 10,
    cluster_blocks=0,
    gigahertz=1.41,
    lanes=64,
    tf32=512,
    bf16=1024,
    shared_rate=128,
    l2_rate=5120,
    l2_rate_of_one=64,
    shared_wait=30,
    l2_wait=250,
    remote_wait=200,
    owner_wait=30,
    tensor_wait=40,
    block_barrier=30,
    grid_barrier_us=1.5,
    cluster_barrier_us=0.3,
    launch_us=5.0,
)
H100 = replace(
    A100,
    name="H100",
    compute_capability=90,
    multiprocessors=132,
    block_shared_bytes=227 << 10,
    cluster_blocks=16,
    gigahertz=1.98,
    lanes=128,
    tf32=1024,
    bf16=2048,
)
DEVICES = (A100, H100)
EAGER_US = (2.5, 5.0)  # of one launch of plain PyTorch: assumption

# --- The kernels' loops

THREADS, TILE, OTHERS = 256, 16, 64  # block_threads, tile_units, tile_others of csrc/cuda/problem.h
NUMBER = 4  # bytes, float32
WARPS, SCHEDULERS = THREADS // 32, 4  # of a block, of a multiprocessor


@dataclass(frozen=True)
class Loops:
    """How many loads of one thread are under way when it waits for the first, as far as the source asks for them."""

    packs: int = 2  # of 16 bytes that come through registers: bring() of csrc/cuda/pack.cuh
    slices: int = 4  # packs of the sums after a product
    copy_instructions: int = 24  # of one asynchronous copy, addresses included
    add_instructions: int = 4  # of one pass of FmaTile::add beside its 16 multiply-adds
    move_clocks: int = 60  # of one unit's next state, arithmetic alone


LOOPS = Loops()
PACK = 16 // NUMBER
IN_FLIGHT = Loops(packs=4)  # what if four were under way


@dataclass(frozen=True)
class Work:
    """What a block does, and the clocks until it is done."""

    l2_bytes: float = 0
    remote_bytes: float = 0  # from other blocks' shared memory
    shared_bytes: float = 0
    fma: float = 0
    tensor_fma: float = 0
    waited: float = 0  # clocks in which all threads wait for loads
    clocks: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, f.name) for f in fields(Work)))


NOTHING = Work()


def total(works: Iterator[Work]) -> Work:
    return functools.reduce(Work.__add__, works, NOTHING)


@dataclass(frozen=True)
class Setting:
    """What a training step does, as far as its cost depends on it."""

    widths: tuple[int, ...]
    batch: int
    free_steps: int
    nudged_steps: int
    continual: bool
    relaxes_only: bool
    free_feedback: bool
    asynchronous: bool
    symmetric: bool
    low_rank: bool  # C-EP's inner updates

    @property
    def layers(self) -> int:
        return len(self.widths) - 1

    @property
    def phases(self) -> int:
        return 0 if self.relaxes_only else 2 if self.symmetric else 1

    @property
    def terms(self) -> int:
        """Outer products in a contrast of an inner connection."""
        return 1 if self.free_feedback else 2

    @property
    def moves_inner(self) -> bool:
        """Weights between layers move at every nudged step."""
        return self.continual and not self.low_rank


def alike(method: Callable[..., Work]) -> Callable[..., Work]:
    """Of a block's work, what is the same in all blocks of a model: computed once."""

    @functools.wraps(method)
    def known(block: Block, *args: Any, **named: Any) -> Work:
        key = (method.__name__, args, *named.items())
        if key not in block.memo:
            block.memo[key] = method(block, *args, **named)
        return block.memo[key]

    return known


class Block:
    """What one block of a launch does, and how long that takes it."""

    def __init__(self, model: Model, index: int) -> None:
        self.memo = model.memo
        self.index, self.tiles = index, model.plan["layers_of_tiles"][index]
        self.setting, self.plan, self.device, self.loops = model.setting, model.plan, model.device, model.loops
        self.precision, self.blocks = model.precision, model.plan["blocks"]
        self.in_cluster = self.plan["exchange"] == "cluster"
        self.resident, self.columns = self.plan["resident"], self.plan["columns"]
        self.width = self.plan["samples_at_once"]  # of a pass
        self.passes = math.ceil(self.setting.batch / self.width)

    # --- A step

    def step(self, updated: bool = False, corrected: bool = False, half: int = -1) -> Work:
        """The block's tiles of one half of the layers, or all, move."""
        tiles = [layer for layer in self.tiles if half < 0 or layer % 2 == half]
        work = NOTHING
        for layer in tiles:
            work += self.products((self.below(layer), self.above(layer)), packed=self.resident)
            batch = self.setting.batch
            # x^T x with what C-EP's W[0] has learned; the B x B matrices with the tile's states.
            more = (batch,) * (updated and layer == 0) + (batch,) * (2 * corrected)
            if more:
                work += self.products(more, packed=False, sums=False)
            work += self.move(layer)
        return work

    def drive(self) -> Work:
        """The input reaches layer 0."""
        inputs = self.setting.widths[0]
        store = self.done(l2_bytes=TILE * self.columns * NUMBER, waited=self.outputs() * self.device.l2_wait)
        return (self.products((inputs,), packed=False) + store) * self.tiles.count(0)

    def below(self, layer: int) -> int:
        return self.setting.widths[layer] if layer > 0 else 0

    def above(self, layer: int) -> int:
        return self.setting.widths[layer + 2] if layer + 1 < self.setting.layers else 0

    @alike
    def products(self, depths: Sequence[int], packed: bool, sums: bool = True) -> Work:
        """multiply(): a tile's products with the rows of its sides, in parts of the depth, and the slices' sums."""
        work = NOTHING
        for depth in depths:
            parts = [min(self.plan["depth_at_once"], depth - k) for k in range(0, depth, self.plan["depth_at_once"])]
            # While a part is multiplied the next is copied, as far as that is asynchronous.
            for part, following in zip([0, *parts], [*parts, 0], strict=True):
                waiting, copying, multiplying = self.staged(following, packed), self.copied(following), self.added(part)
                done = multiplying + waiting + copying
                hidden = min(multiplying.clocks, copying.clocks) if part else 0
                work += replace(done, clocks=done.clocks - hidden, waited=done.waited - min(hidden, copying.waited))
                work += self.barrier() * (2 if part else 0)
        return (work + self.sums() * sums) * self.passes

    @property
    def rows_are_copied(self) -> bool:
        """By asynchronous copies; else through registers."""
        return not self.in_cluster and self.precision != "bf16"

    @property
    def staged_bytes(self) -> int:
        return 2 if self.precision == "bf16" else NUMBER

    def copied(self, rows: int) -> Work:
        if not rows or not self.rows_are_copied:
            return NOTHING
        size = rows * self.width * NUMBER
        return self.done(l2_bytes=size, shared_bytes=size, waited=self.device.l2_wait)

    def staged(self, rows: int, packed: bool) -> Work:
        """What is not hidden: weights and rows that come through registers, and the asking for asynchronous copies."""
        work = NOTHING
        if not rows:
            return work
        if not packed or self.precision == "bf16":
            size = rows * TILE * NUMBER
            waits = math.ceil(rows * TILE / PACK / THREADS / self.loops.packs)
            waited = waits * (self.device.shared_wait if packed else self.device.l2_wait)
            work += self.done(l2_bytes=0 if packed else size, shared_bytes=size * (1 + packed), waited=waited)
        if self.rows_are_copied:
            items = math.ceil(self.plan["depth_at_once"] * self.width / 4 / THREADS)
            work += self.done(clocks=items * self.loops.copy_instructions * WARPS / SCHEDULERS)
        else:
            items, size = math.ceil(rows * self.width / 4 / THREADS), rows * self.width
            remote = self.in_cluster and packed  # what is not packed is the input's, in a cluster
            one = self.load_wait if remote else self.device.l2_wait
            wait = one / self.loops.packs + self.owner_search * remote
            kind = "remote_bytes" if remote else "l2_bytes"
            work += self.done(**{kind: size * NUMBER}, shared_bytes=size * self.staged_bytes, waited=items * wait)
        return work

    def added(self, rows: int) -> Work:
        """Tile::add: a thread's loop multiplies while its next operands come, or, tensor cores, waits for them; two
        warps share a scheduler."""
        if not rows:
            return NOTHING
        device = self.device
        if self.precision == "exact":
            groups = self.width  # 4 x 4 outputs a thread
            passes = math.ceil(rows / (THREADS // groups))
            issue = 16 * 32 / (device.lanes / SCHEDULERS) + self.loops.add_instructions
            clocks = device.shared_wait + passes * max(device.shared_wait, WARPS / SCHEDULERS * issue)
            fma = rows * TILE * self.width
            return self.done(shared_bytes=rows * groups * 8 * NUMBER, fma=fma, clocks=clocks)
        depth, groups = (8 if self.precision == "tf32" else 16), self.width // 16
        passes = math.ceil(rows / depth / (WARPS // groups))
        rounded = math.ceil(rows / depth) * depth
        return self.done(
            shared_bytes=rounded * groups * 2 * TILE * self.staged_bytes,
            tensor_fma=rounded * TILE * self.width,
            clocks=passes * (device.shared_wait + device.tensor_wait),
        )

    def sums(self) -> Work:
        """The slices of a product are written and added up."""
        slices = THREADS // self.width if self.precision == "exact" else WARPS // (self.width // 16)
        waits = self.outputs() * math.ceil(slices / self.loops.slices)
        size = 2 * slices * TILE * self.width * NUMBER
        return self.done(shared_bytes=size, waited=waits * self.device.shared_wait) + self.barrier() * 2

    @alike
    def move(self, layer: int) -> Work:
        """Units' next states: state and drive or bias."""
        rows = TILE * self.columns * NUMBER
        wait = self.device.l2_wait + self.owner_search
        l2_bytes = rows * (layer == 0) + (0 if self.in_cluster else 2 * rows)
        waited = self.outputs() * self.passes * (wait + PACK * self.loops.move_clocks)
        return self.done(l2_bytes=l2_bytes, waited=waited)

    def outputs(self) -> int:
        """Packs of a tile, by one thread in one pass."""
        return math.ceil(TILE * self.width / PACK / THREADS)

    # --- Learning

    def prepare_low_rank(self) -> Work:
        """Tiles of two matrices of every layer, each the sum of its neighbours' products."""
        setting, work = self.setting, NOTHING
        row_tiles = math.ceil(setting.batch / TILE)
        for index in range(self.index, 2 * setting.layers * row_tiles, self.blocks):
            layer = index // row_tiles // 2
            neighbours = [layer + side for side in (-1, 1) if 0 <= layer + side < setting.layers]
            work += self.products(tuple(setting.widths[n + 1] for n in neighbours), packed=False)
        return work

    def gram(self) -> Work:
        """C-EP's x^T x."""
        tiles = len(range(self.index, math.ceil(self.setting.batch / TILE), self.blocks))
        return self.products((self.setting.widths[0],), packed=False) * tiles

    def move_own(self) -> Work:
        """What the block owns moves after a nudged step: biases, the drive, weights that stay in shared memory."""
        return total(self.moved(layer) for layer in self.tiles)

    @alike
    def moved(self, layer: int) -> Work:
        setting, device = self.setting, self.device
        rows = TILE * self.columns * NUMBER
        # Sums over the batch by 16 lanes, four exchanges between them, and the bias.
        waited = math.ceil(setting.batch / 16 / PACK) * self.row_wait(2) + 4 * device.shared_wait + device.l2_wait
        work = self.done(l2_bytes=0 if self.in_cluster else 2 * rows, waited=waited)
        if layer == 0:  # sum_up()
            packs = math.ceil(TILE * self.columns / PACK / THREADS)
            work += self.done(l2_bytes=3 * rows, waited=packs * self.row_wait(1))
        if setting.moves_inner and self.resident:
            for connection in (layer, layer + 1):
                if 0 < connection < setting.layers:
                    others = setting.widths[layer if connection == layer else layer + 2]
                    for first in range(0, others, OTHERS):
                        again = first > 0
                        work += self.contrast_tile(
                            min(OTHERS, others - first), setting.terms, 3 * device.shared_wait, again
                        )
        return work

    @alike
    def contrast_tile(
        self, others: int, terms: int, store_wait: float, again: bool = False, known: bool = False
    ) -> Work:
        """Contrast::tile, 16 units by up to 64. ``again``: the 16 units' rows are in L1; ``known``: the others are rows
        in global memory, as the input's."""
        device, width = self.device, self.width
        both = self.row_wait(2 if terms == 1 else 1.5)  # a side that moved by two fields, one that shows one
        own = math.ceil(TILE * width / PACK / THREADS / self.loops.packs)
        other = math.ceil(others * width / PACK / THREADS / self.loops.packs)
        of_own = device.shared_wait if again and not self.in_cluster else both
        waited = terms * (own * of_own + other * (device.l2_wait if known else both))
        waited += terms * math.ceil(width / 16) * device.shared_wait
        l2_bytes = 0 if self.in_cluster else terms * 1.5 * (TILE * (not again) + others) * width * NUMBER
        # Of four samples a warp reads 32 rows of the others, and one number of each of four of the 16 units.
        reads = terms * WARPS * width / 4 * (32 * 4 * NUMBER + 4 * device.shared_rate)
        writes = terms * (TILE + others) * width * NUMBER
        one = self.done(
            l2_bytes=l2_bytes,
            shared_bytes=reads + writes,
            fma=terms * TILE * OTHERS * width,
            waited=waited,
        )
        return (one + self.barrier() * 2) * self.passes + self.done(waited=store_wait)

    def learn(self, connections: Sequence[int]) -> Work:
        """add_to_matrix() of these connections' matrices, tiles of which go round the blocks."""
        setting, work = self.setting, NOTHING
        store_wait = 4 * self.device.l2_wait if setting.continual else 0
        for c in connections:
            upper, lower = setting.widths[c + 1], setting.widths[c]
            chunks = math.ceil(upper / TILE) * math.ceil(lower / OTHERS)
            mine = len(range(self.index, chunks, self.blocks))
            copies = 2 if setting.free_feedback and c > 0 else 1
            terms = 1 if c == 0 else setting.terms
            work += self.contrast_tile(min(OTHERS, lower), terms, store_wait, known=c == 0) * (mine * copies)
        return work

    # --- Once

    def load(self) -> Work:
        """x turned round, states at rest, weights to shared memory."""
        setting, device = self.setting, self.device
        waits = math.ceil(setting.widths[0] * self.columns / PACK / self.blocks / THREADS)
        work = self.done(
            l2_bytes=2 * setting.widths[0] * self.columns * NUMBER / self.blocks, waited=waits * device.l2_wait
        )
        if self.resident:
            for layer in self.tiles:
                size = (self.below(layer) + self.above(layer)) * TILE
                waits = math.ceil(size / PACK / THREADS / self.loops.packs)
                work += self.done(l2_bytes=size * NUMBER, shared_bytes=size * NUMBER, waited=waits * device.l2_wait)
        return work

    def store(self) -> Work:
        """The states at a phase's end, given out and kept."""
        one = self.done(
            l2_bytes=4 * TILE * self.columns * NUMBER, waited=3 * self.outputs() * self.passes * self.row_wait(1)
        )
        return one * len(self.tiles)

    def store_resident(self) -> Work:
        sizes = (self.below(layer) + self.above(layer) * self.setting.free_feedback for layer in self.tiles)
        return total(
            self.done(
                l2_bytes=size * TILE * NUMBER,
                shared_bytes=size * TILE * NUMBER,
                waited=math.ceil(size * TILE / THREADS) * self.device.shared_wait,
            )
            for size in sizes
        )

    # --- Clocks

    def done(self, clocks: float = 0, waited: float = 0, **amounts: float) -> Work:
        """The waits, then what the slowest of the block's resources takes, or ``clocks`` if more."""
        work, device = Work(waited=waited, **amounts), self.device
        tensor_rate = device.bf16 if self.precision == "bf16" else device.tf32
        busy = max(
            (work.l2_bytes + work.remote_bytes) / device.l2_rate_of_one,
            work.shared_bytes / device.shared_rate,
            work.fma / device.lanes,
            work.tensor_fma / tensor_rate,
            clocks,
        )
        return replace(work, clocks=waited + busy)

    def barrier(self) -> Work:
        return Work(clocks=self.device.block_barrier)

    @property
    def owner_search(self) -> float:
        """Until a block of a cluster knows who owns a row."""
        return self.device.owner_wait if self.in_cluster else 0

    @property
    def load_wait(self) -> int:
        """Until a state is there."""
        return self.device.remote_wait if self.in_cluster else self.device.l2_wait

    def row_wait(self, rows: float) -> float:
        """Until numbers of so many rows of states are there, asked for one after the other."""
        return rows * self.owner_search + self.load_wait


# --- A training step


@dataclass(frozen=True)
class Part:
    """A step, or what is done once: of the busiest block, and of the device."""

    work: Work  # of the block that takes longest
    all_l2_bytes: float
    clocks: float
    barriers: int
    us: float


class Model:
    """One case on one device by one kernel."""

    def __init__(
        self,
        setting: Setting,
        device: Device,
        precision: str = "exact",
        exchange: str | None = None,
        loops: Loops = LOOPS,
    ) -> None:
        self.setting, self.device, self.precision, self.loops = setting, device, precision, loops
        self.plan = plan_of(setting, device, precision, exchange)
        self.memo: dict[Any, Work] = {}
        self.blocks = [Block(self, index) for index in range(self.plan["blocks"])]

    def part(self, work: Callable[[Block], Work], barriers: int) -> Part:
        """What lies between barriers takes as long as the block that is last."""
        works = [work(block) for block in self.blocks]
        longest = max(works, key=lambda one: one.clocks)
        all_l2_bytes = sum(one.l2_bytes for one in works)
        clocks = max(longest.clocks, all_l2_bytes / self.device.l2_rate)
        of_one = self.device.cluster_barrier_us if self.plan["exchange"] == "cluster" else self.device.grid_barrier_us
        return Part(longest, all_l2_bytes, clocks, barriers, clocks / self.device.gigahertz / 1e3 + barriers * of_one)

    def free_step(self) -> list[Part]:
        if self.setting.asynchronous:
            return [self.part(partial(Block.step, half=half), 1) for half in (0, 1)]
        return [self.part(Block.step, 1)]

    def nudged_step(self) -> list[Part]:
        setting = self.setting
        if not setting.continual:
            return self.free_step()
        if setting.low_rank and setting.layers > 1:
            # The last step's move and the next one's matrices have no barrier between them.
            before = self.part(lambda block: block.move_own() + block.prepare_low_rank(), 1)
            return [before, self.part(partial(Block.step, updated=True, corrected=True), 1)]
        if not setting.asynchronous:
            parts = [self.part(lambda block: block.step(updated=True) + block.move_own(), 1)]
        else:
            parts = [*(self.part(partial(Block.step, updated=True, half=half), 1) for half in (0, 1))]
            parts.append(self.part(Block.move_own, 0))
        if setting.moves_inner and not self.plan["resident"]:
            parts.append(self.part(lambda block: block.learn(range(1, setting.layers)), 1))
        return parts

    def once(self) -> list[Part]:
        setting = self.setting
        parts = [self.part(Block.load, 1), self.part(lambda block: block.drive() + block.store(), 0)]
        if setting.relaxes_only:
            return parts
        parts += [self.part(Block.store, 1)] * setting.phases
        if not setting.continual:
            return [*parts, self.part(lambda block: block.learn(range(setting.layers)), 0)]
        parts.append(self.part(Block.gram, 1))
        at_end = range(setting.layers) if setting.low_rank else (0,)
        parts.append(self.part(lambda block: block.learn(at_end), 0))
        if setting.moves_inner and self.plan["resident"]:
            parts.append(self.part(Block.store_resident, 0))
        return parts

    def ms(self) -> float:
        """Of a training step, launch included."""
        setting = self.setting
        free, nudged, once = (us(parts) for parts in (self.free_step(), self.nudged_step(), self.once()))
        frees, nudges = setting.free_steps, setting.phases * setting.nudged_steps
        if setting.continual and setting.symmetric:
            frees += setting.nudged_steps  # the way back
        return (self.device.launch_us + once + frees * free + nudges * nudged) / 1e3


def us(parts: Sequence[Part]) -> float:
    return sum(part.us for part in parts)


def plan_of(setting: Setting, device: Device, precision: str, exchange: str | None) -> dict[str, Any]:
    """What the planner decides, or the plan with this exchange; ValueError if there is none."""
    return _C.launch_plan(
        compute_capability=device.compute_capability,
        multiprocessors=0 if exchange == "cluster" else device.multiprocessors,  # 0: no room for a grid
        shared_bytes=device.block_shared_bytes,
        cluster_blocks=0 if exchange == "grid" else device.cluster_blocks,
        widths=list(setting.widths),
        readout=False,
        energy=False,
        asynchronous=setting.asynchronous,
        batch=setting.batch,
        number_bytes=NUMBER,
        precision=precision,
    )


def setting_of(case: Case) -> Setting:
    """Of a benchmark's case, with C-EP's updates in the form that the kernels choose."""
    preset = case.preset
    if preset.convolutions is not None:
        raise ValueError("the model knows no convolutions")
    shape: dict[str, Any] = {
        "free_feedback": preset.feedback == "free",
        "asynchronous": preset.schedule == "asynchronous",
        "symmetric": preset.nudging == "symmetric",
    }
    _, forms = _C.step_costs(
        widths=list(case.sizes),
        readout=False,
        accumulate=False,
        shared_update=False,
        weight_decay=False,
        literal_input=False,  # not on CUDA
        batch=case.batch,
        free_steps=case.free_steps,
        nudged_steps=case.nudged_steps,
        number_bytes=NUMBER,
        continual=preset.continual,
        update="auto",
        **shape,
    )
    return Setting(
        widths=case.sizes,
        batch=case.batch,
        free_steps=case.free_steps,
        nudged_steps=case.nudged_steps,
        continual=preset.continual and not case.relaxes_only,
        relaxes_only=case.relaxes_only,
        low_rank=forms.get("inner") == "low_rank",
        **shape,
    )


def case_of(case: Case | Preset | str) -> Case:
    """A preset, by its name or itself, or the name of a benchmark's case, as a case."""
    if isinstance(case, Preset):
        return Case("preset", case, case.batch_size)
    if isinstance(case, Case):
        return case
    if case in PRESETS:
        return Case(case, PRESETS[case], PRESETS[case].batch_size)
    return next(known for known in all_cases() if known.name == case)


def known_device(name: str) -> Device | None:
    """The device that the model knows under what CUDA calls it, e.g. "NVIDIA H100 80GB HBM3"; None: none."""
    chips = {"A100": A100, "H100": H100, "H200": H100}  # H200: the same chip with other memory
    return next(
        (chip for name_of_chip, chip in chips.items() if name_of_chip in name and "H100 PCIe" not in name), None
    )


def predicted_ms(case: Case | Preset | str, device: Device | str, precision: str = "exact") -> float | None:
    """What a training step (or a free phase alone) of a case, or of a preset at its batch size, should take by the
    kernel that the planner takes. ``device`` may be what CUDA calls it; None if the model does not know it.

    Raises:
        ValueError: no kernel takes the case on this device in this precision.
    """
    known = known_device(device) if isinstance(device, str) else device
    return None if known is None else Model(setting_of(case_of(case)), known, precision).ms()


# --- Eager PyTorch


class Launches(TorchDispatchMode):
    """Counts the operators that would each launch a kernel: all but views and those that only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        if not is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view")):
            self.by_name[func._schema.name] += 1
        return func(*(args or ()), **(kwargs or {}))


@functools.cache
def eager_launches(case: Case) -> int:
    """Of a training step by the reference."""
    net, x, y = case.problem(torch.float32)
    step = CONTENDERS["eager"]()(case, net)
    step(x, y)
    with Launches() as launches:
        step(x, y)
    return sum(launches.by_name.values())


def eager_launches_of_steps(case: Case) -> tuple[int, int]:
    """Of a free and of a nudged step: the difference that one more makes."""
    few = eager_launches(case.of_steps(2, 2))
    return eager_launches(case.of_steps(3, 2)) - few, eager_launches(case.of_steps(2, 3)) - few


# --- Tables

CASES = tuple(f"{name}-b20" for name in ("ep-1h", "ep-2h", "c-ep-1h", "c-ep-2h", "c-vf-1h", "c-vf-2h", "p-3h"))
PRECISIONS = ("exact", "tf32", "bf16")


def variants(setting: Setting, loops: Loops = LOOPS) -> Iterator[tuple[Device, str, str, Model]]:
    """Every device, exchange and precision that there is a plan for."""
    for device in DEVICES:
        for exchange in ("grid", "cluster"):
            for precision in PRECISIONS:
                try:
                    yield device, exchange, precision, Model(setting, device, precision, exchange, loops)
                except ValueError:
                    continue


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def constants_table() -> str:
    rows = []
    for one in fields(Device):
        if one.metadata:
            values = [f"{getattr(device, one.name):g}" for device in DEVICES]
            rows.append([one.name, *values, one.metadata["unit"], one.metadata["source"]])
    return markdown(["", *(device.name for device in DEVICES), "", "whose number"], rows)


STEP_HEADER = [
    "L2, kB",
    "of all blocks",
    "other blocks, kB",
    "shared, kB",
    "multiply-adds, 1000",
    "L2, us",
    "shared, us",
    "multiply, us",
    "waits, us",
    "barriers, us",
    "step, us",
]


def step_cells(model: Model, parts: Sequence[Part]) -> list[str]:
    """Amounts of the busiest block and what they would take alone; the step's time is less than their sum where they
    overlap, and more by instructions and barriers of blocks."""
    device, work = model.device, total(part.work for part in parts)
    clock = 1e3 * device.gigahertz
    tensor_rate = device.bf16 if model.precision == "bf16" else device.tf32
    l2_us = (work.l2_bytes + work.remote_bytes) / device.l2_rate_of_one / clock
    busy = us(parts) - sum(part.clocks for part in parts) / clock
    return [
        f"{work.l2_bytes / 1e3:.0f}",
        f"{sum(part.all_l2_bytes for part in parts) / 1e3:.0f}",
        f"{work.remote_bytes / 1e3:.0f}",
        f"{work.shared_bytes / 1e3:.0f}",
        f"{(work.fma + work.tensor_fma) / 1e3:.0f}",
        f"{l2_us:.2f}",
        f"{work.shared_bytes / device.shared_rate / clock:.2f}",
        f"{(work.fma / device.lanes + work.tensor_fma / tensor_rate) / clock:.2f}",
        f"{work.waited / clock:.2f}",
        f"{busy:.2f}",
        f"{us(parts):.2f}",
    ]


def steps_table(names: Sequence[str], parts_of: Callable[[Model], Sequence[Part]]) -> str:
    rows = []
    for name in names:
        for device, exchange, precision, model in variants(setting_of(case_of(name))):
            head = [name.removesuffix("-b20"), device.name, exchange, precision]
            layout = f"{model.plan['blocks']} x {max(map(len, model.plan['layers_of_tiles']))}"
            rows.append([*head, layout, *step_cells(model, parts_of(model))])
    return markdown(["", "", "exchange", "precision", "blocks x tiles", *STEP_HEADER], rows)


def training_table() -> str:
    rows = []
    for name in CASES:
        case = case_of(name)
        setting, launches = setting_of(case), eager_launches(case)
        update = "" if not setting.continual else "low rank" if setting.low_rank else "literal"
        for device in DEVICES:
            by_variant = {(e, p): f"{model.ms():.2f}" for d, e, p, model in variants(setting) if d is device}
            cells = [by_variant.get((e, p), "") for e in ("grid", "cluster") for p in PRECISIONS]
            planned = Model(setting, device)
            eager = " - ".join(f"{launches * one / 1e3:.1f}" for one in EAGER_US)
            low, high = (launches * one / 1e3 / planned.ms() for one in EAGER_US)
            rows.append(
                [
                    name.removesuffix("-b20"),
                    update,
                    device.name,
                    *cells,
                    f"{planned.plan['exchange']}: {planned.ms():.2f}",
                    f"{launches}",
                    eager,
                    f"{low:.0f} - {high:.0f}",
                ]
            )
    header = ["", "update", "", *(f"{e}, {p}" for e in ("grid", "cluster") for p in PRECISIONS)]
    return markdown([*header, "planned, exact", "launches of eager", "eager, ms", "eager / planned"], rows)


def shares_table() -> str:
    """Where the planned kernel's time goes."""
    rows = []
    for name in CASES:
        setting = setting_of(case_of(name))
        for device in DEVICES:
            model = Model(setting, device)
            free, nudged, once = model.free_step(), model.nudged_step(), model.once()
            counts = (setting.free_steps, setting.phases * setting.nudged_steps, 1)
            whole = 1e3 * model.ms()
            times = [count * us(parts) for count, parts in zip(counts, (free, nudged, once), strict=True)]
            clock = 1e3 * device.gigahertz
            waits = sum(
                count * sum(part.work.waited for part in parts) / clock
                for count, parts in zip(counts, (free, nudged, once), strict=True)
            )
            barriers = sum(
                count * (us(parts) - sum(part.clocks for part in parts) / clock)
                for count, parts in zip(counts, (free, nudged, once), strict=True)
            )
            shares = [*times, device.launch_us, waits, barriers, whole - waits - barriers - device.launch_us]
            rows.append(
                [name.removesuffix("-b20"), device.name, f"{whole:.0f}", *(f"{share / whole:.0%}" for share in shares)]
            )
    header = ["", "", "us", "free steps", "nudged steps", "once", "launch", "waits", "barriers", "the rest"]
    return markdown(header, rows)


def sensitivity_table() -> str:
    """By how much single changes change the prediction for H100, in float32, in a grid."""
    loads = "four packs under way"
    changes: dict[str, tuple[Device, Loops]] = {
        loads: (H100, IN_FLIGHT),
        "grid_barrier_us halved": (replace(H100, grid_barrier_us=H100.grid_barrier_us / 2), LOOPS),
        "l2_wait halved": (replace(H100, l2_wait=H100.l2_wait // 2), LOOPS),
        "shared_wait halved": (replace(H100, shared_wait=H100.shared_wait // 2), LOOPS),
        "shared_rate doubled": (replace(H100, shared_rate=2 * H100.shared_rate), LOOPS),
    }
    rows = []
    for name in CASES:
        setting = setting_of(case_of(name))
        now = Model(setting, H100, exchange="grid").ms()
        others = [Model(setting, *(device, "exact", "grid", loops)).ms() for device, loops in changes.values()]
        rows.append([name.removesuffix("-b20"), f"{now:.2f}", *(f"{other / now - 1:+.0%}" for other in others)])
    return markdown(["", "ms", *changes], rows)


def batches_table() -> str:
    """The planned kernels in float32 by batch size, and eager's launches, which do not depend on it."""
    rows = []
    for name in ("c-ep-1h", "c-ep-2h", "ep-2h"):
        for device in DEVICES:
            cells = [f"{predicted_ms(f'{name}-b{batch}', device):.2f}" for batch in BATCH_SIZES]
            launches = eager_launches(case_of(f"{name}-b20"))
            rows.append([name, device.name, *cells, " - ".join(f"{launches * one / 1e3:.1f}" for one in EAGER_US)])
    return markdown(["", "", *(f"B = {batch}" for batch in BATCH_SIZES), "eager's launches"], rows)


def forms_table() -> str:
    """C-EP's inner updates in both forms; the kernels take the one with fewer operations."""
    rows = []
    for name in ("c-ep-1h", "c-ep-2h"):
        for device in DEVICES:
            for batch in BATCH_SIZES[:3]:
                setting = setting_of(case_of(f"{name}-b{batch}"))
                ms = [
                    Model(replace(setting, low_rank=low_rank), device, exchange="grid").ms()
                    for low_rank in (False, True)
                ]
                taken = "low rank" if setting.low_rank else "literal"
                rows.append([name, device.name, f"{batch}", *(f"{one:.2f}" for one in ms), taken])
    return markdown(["", "", "B", "literal", "low rank", "taken"], rows)


def launches_table() -> str:
    rows = []
    for name in CASES:
        case = case_of(name)
        free, nudged = eager_launches_of_steps(case)
        rows.append([name.removesuffix("-b20"), f"{free}", f"{nudged}", f"{eager_launches(case)}"])
    return markdown(["", "free step", "nudged step", "training step"], rows)


def report() -> str:
    """All tables, each below its heading."""
    shapes = ("ep-1h-b20", "ep-2h-b20", "p-3h-b20")
    learning = ("c-ep-1h-b20", "c-ep-2h-b20", "c-vf-1h-b20", "c-vf-2h-b20")
    parts = [
        ("Training step, milliseconds", training_table()),
        ("Where the time of the planned kernel goes", shares_table()),
        ("What single changes would do", sensitivity_table()),
        ("Batch sizes, milliseconds", batches_table()),
        ("Both forms of the inner updates, in a grid, milliseconds", forms_table()),
        ("Free step", steps_table(shapes, Model.free_step)),
        ("Nudged step of continual EP", steps_table(learning, Model.nudged_step)),
        ("Operators of eager PyTorch that launch a kernel", launches_table()),
        ("Constants", constants_table()),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)


MARK = "## Tables\n"


def main(description: str | None, report: Callable[[], str], script: Path) -> None:
    """Prints the tables, and with --update puts them into the page beside ``script``, below its text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    page = script.with_suffix(".md")
    parser.add_argument("--update", action="store_true", help=f"put the tables into {page.name}")
    args = parser.parse_args()
    tables = report()
    print(tables)
    if args.update:
        text = page.read_text().partition(MARK)[0]
        page.write_text(f"{text}{MARK}\n`python benchmarks/{script.name}`\n\n{tables}\n")


if __name__ == "__main__":
    main(__doc__, report, Path(__file__))
