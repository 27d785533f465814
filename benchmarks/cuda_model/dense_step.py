"""A training step of a dense network by the kernel that the planner takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dense_block import LOOPS, NUMBER, Block, Launch, Loops, Setting, Work
from devices import Device, known_device

from ceprop_cuda import _C
from ceprop_cuda.bench.cases import Case, all_cases
from ceprop_cuda.presets import PRESETS, Preset


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
        self.setting, self.device, self.precision = setting, device, precision
        self.plan = plan_of(setting, device, precision, exchange)
        launch = Launch(setting, device, precision, self.plan, loops)
        self.blocks = [Block(launch, index) for index in range(self.plan["blocks"])]

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


def predicted_ms(case: Case | Preset | str, device: Device | str, precision: str = "exact") -> float | None:
    """What a training step (or a free phase alone) of a case, or of a preset at its batch size, should take by the
    kernel that the planner takes. ``device`` may be what CUDA calls it; None if the model does not know it.

    Raises:
        ValueError: no kernel takes the case on this device in this precision.
    """
    known = known_device(device) if isinstance(device, str) else device
    return None if known is None else Model(setting_of(case_of(case)), known, precision).ms()
