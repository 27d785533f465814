"""What one block of a dense kernel's launch does, and how long that takes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from devices import Device

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


@dataclass(frozen=True)
class Launch:
    """A kernel's launch on a device."""

    setting: Setting
    device: Device
    precision: str
    plan: dict[str, Any]  # the planner's
    loops: Loops
    known: dict[Any, Work] = field(default_factory=dict)  # work that is the same in all blocks


def alike(method: Callable[..., Work]) -> Callable[..., Work]:
    """Of a block's work, what is the same in all blocks of a launch: computed once."""

    @functools.wraps(method)
    def once(block: Block, *args: Any, **named: Any) -> Work:
        key = (method.__name__, args, *named.items())
        if key not in block.known:
            block.known[key] = method(block, *args, **named)
        return block.known[key]

    return once


class Block:
    """What one block of a launch does, and how long that takes it."""

    def __init__(self, launch: Launch, index: int) -> None:
        self.known = launch.known
        self.index, self.tiles = index, launch.plan["layers_of_tiles"][index]
        self.setting, self.plan, self.device, self.loops = launch.setting, launch.plan, launch.device, launch.loops
        self.precision, self.blocks = launch.precision, launch.plan["blocks"]
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
