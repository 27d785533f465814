"""A prediction of what ConvNets take on a GPU, in one launch or by a library's convolutions, from their plans and from
numbers of data sheets. Nothing is measured.

    python benchmarks/cuda_model/convolutions.py            # the tables
    python benchmarks/cuda_model/convolutions.py --update   # and puts them below the text of convolutions.md

Of one launch, follows the busiest block through a free step: what it gathers, reads in shared memory and multiplies;
then the barriers. Of a library's calls, adds up multiplications, the bytes of the kernels around them, and how many
kernels follow each other. What is learnt is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from devices import A100, EAGER_US, H100, Device
from eager_launches import Launches
from tables import main, markdown

import ceprop_cuda as cep
from ceprop_cuda import _C, ops
from ceprop_cuda.presets import PRESETS

CLASSES = 10
TILE = 16  # units
INSTRUCTIONS_OF_A_GATHER = 12  # of a number on its way to shared memory: assumption
INSTRUCTIONS_OF_AN_OPERAND = 18 / 16  # of a multiply-add, with its loads from shared memory: counted in the source
ISSUED = 128  # instructions of threads a clock and multiprocessor: vendor's data
TILE_WAIT = 2000  # clocks until a tile's first numbers are there and its last are stored: assumption
MEMORY_RATE = {"A100": 1555, "H100": 3350}  # GB/s: vendor's data
LIBRARY_RATE = 0.8  # of a device's multiply-adds: assumption
TF32_RATE = 4.0  # of its FP32 rate, in a library's convolutions: assumption, of launch_plan.h, too
KERNEL_US = 3.0  # from one kernel of a graph to the next: assumption of launch_plan.h
NUMBER = 4  # bytes


@dataclass(frozen=True)
class Tiles:
    """Of one job: how many, and what each multiplies."""

    count: int
    depth: int
    columns: int


def tiles(units: int, columns: int, window: int, depth: int, at_once: int) -> Tiles:
    held = min(at_once, -(-columns // 8) * 8)
    return Tiles(-(-units // TILE) * -(-columns // (held // window * window)), depth, held)


def image_of(preset: str) -> tuple[int, int, int]:
    return (3, 32, 32) if "cifar" in preset else (1, 28, 28)


def settings_of(preset: str, batch: int) -> dict[str, Any]:
    """What the planner is asked of a preset, for any device."""
    image = image_of(preset)
    net = PRESETS[preset].network(image, CLASSES)
    asked = ops._launch_settings(net.circuit(), torch.empty(batch, *image, device="meta"), "exact")
    return {name: value for name, value in asked.items() if name != "index"}


def plan_of(asked: dict[str, Any], device: Device) -> dict[str, Any]:
    return _C.convolution_launch_plan(
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
        shared_bytes=device.block_shared_bytes,
        cluster_blocks=device.cluster_blocks,
        **asked,
    )


def parts_of_step(asked: dict[str, Any], at_once: int) -> dict[str, list[Tiles]]:
    """Of tied feedback and synchronous steps."""
    maps, made, batch = asked["maps"], asked["made"], asked["batch"]
    up, down = [], []
    for c in range(1, len(maps) - 1):
        (channels, height, width), above = maps[c], maps[c + 1]
        dense = c >= len(made)
        taps, window = (height * width, 1) if dense else (prod(made[c][:2]), prod(made[c][6:]))
        up.append(tiles(above[0], batch * prod(above[1:]) * window, window, channels * taps, at_once))
        if dense:
            down.append(tiles(prod(maps[c]), batch, 1, above[0], at_once))
        else:
            down.append(tiles(channels, batch * height * width, 1, above[0] * taps, at_once))
    down.append(tiles(maps[-1][0], batch, 1, 0, at_once))
    return {"up": up, "down and move": down}


def clocks(one: Tiles, device: Device) -> dict[str, float]:
    """What a tile takes, by what binds it: multiplying, shared memory, or instructions."""
    products = one.depth * TILE * one.columns
    gathered = one.depth * (TILE + one.columns)
    return {
        "multiply": products / device.lanes,
        "shared": (4 * gathered + 2 * products) / device.shared_rate,  # 8 numbers are read for 16 multiply-adds
        "instructions": (gathered * INSTRUCTIONS_OF_A_GATHER + products * INSTRUCTIONS_OF_AN_OPERAND) / ISSUED,
    }


def busiest(jobs: list[Tiles], blocks: int, cost: Callable[[Tiles], float]) -> float:
    """Of the blocks among which the tiles of all jobs go round."""
    load, following = [0.0] * blocks, 0
    for job in jobs:
        for index in range(job.count):
            load[(following + index) % blocks] += cost(job)
        following += job.count
    return max(load)


def step_us(asked: dict[str, Any], device: Device, found: dict[str, Any]) -> dict[str, float]:
    """Of a free step, by part; each ends with a barrier."""
    return {
        name: busiest(jobs, found["blocks"], lambda job: TILE_WAIT + max(clocks(job, device).values()))
        / (1e3 * device.gigahertz)
        + device.grid_barrier_us
        for name, jobs in parts_of_step(asked, found["columns_at_once"]).items()
    }


def launches_of_step(preset: str, batch: int) -> int:
    """Operators of the reference that launch a kernel, in a free step."""

    def launches(free_steps: int) -> int:
        few = replace(PRESETS[preset], free_steps=free_steps, nudged_steps=1)
        image = image_of(preset)
        net, x, y = few.network(image, CLASSES), torch.rand(batch, *image), torch.arange(batch) % CLASSES
        rule = few.rule(net, "reference")
        with Launches() as counted:
            if isinstance(rule, cep.CEP):
                rule.step(x, y)
            else:
                rule.backward(x, y)
        return sum(counted.by_name.values())

    return launches(3) - launches(2)


@dataclass(frozen=True)
class LibraryStep:
    """A free step of tied feedback and max pooling."""

    multiply_adds: float  # of convolutions and products, up and down
    eager_multiply_adds: float  # the reference convolves x, too, and once more to pick the maxima that it unpools to
    moved_bytes: float  # by the kernels around them
    kernels: int


def library_step(asked: dict[str, Any]) -> LibraryStep:
    maps, made, batch = asked["maps"], asked["made"], asked["batch"]
    multiply_adds = of_eager_alone = moved_bytes = 0.0
    kernels = 0
    for c in range(len(maps) - 1):
        units = batch * prod(maps[c + 1])
        is_top = c + 2 == len(maps)
        moved_bytes += NUMBER * units * (3 if is_top else 4)  # what drives them, the state, and the next
        kernels += 1
        dense = c >= len(made)
        taps, window = (prod(maps[c][1:]), 1) if dense else (prod(made[c][:2]), prod(made[c][6:]))
        through = float(units * window * maps[c][0] * taps)
        if c == 0:
            of_eager_alone += through
            continue
        multiply_adds += 2 * through
        kernels += 3  # up, its bias, down
        if not dense and asked["pools"][c] == "m":
            of_eager_alone += through
            moved_bytes += NUMBER * units * (2 * window + 2)  # the map and what is unpooled; the pooled, and the state
            kernels += 1
    return LibraryStep(multiply_adds, multiply_adds + of_eager_alone, moved_bytes, kernels)


def library_ms(step: LibraryStep, device: Device, tf32: bool) -> dict[str, float]:
    rate = LIBRARY_RATE * device.multiprocessors * device.lanes * device.gigahertz * 1e9 * (TF32_RATE if tf32 else 1)
    return {
        "convolutions and products": 1e3 * step.multiply_adds / rate,
        "kernels around them": 1e3 * step.moved_bytes / (1e9 * MEMORY_RATE[device.name]),
        "between kernels": 1e-3 * KERNEL_US * step.kernels,
        "eager's convolutions and products": 1e3 * step.eager_multiply_adds / rate,
    }


LIBRARY_HEADER = ["", "", "B", "precision", "convolutions and products", "kernels around them", "between kernels",
                  "step, ms", "eager's convolutions and products", "launches of eager"]  # fmt: skip


def library_rows() -> list[list[str]]:
    rows = []
    for preset, batches in (("p-conv", (64, 256, 1024)), ("cifar10-ep-mse", (128,))):
        launches = launches_of_step(preset, 2)
        for batch in batches:
            asked = settings_of(preset, batch)
            for device in (A100, H100):
                for precision in ("exact", "tf32"):
                    if plan_of(asked | {"precision": precision}, device)["exchange"] != "library":
                        continue
                    *ours, eager = library_ms(library_step(asked), device, precision == "tf32").values()
                    numbers = [f"{ms:.3f}" for ms in (*ours, sum(ours), eager)]
                    rows.append([preset, device.name, str(batch), precision, *numbers, str(launches)])
    return rows


HEADER = ["", "B", "blocks", "columns at once", "up, us", "down and move, us", "step, us", "planner's step, us"]


def report() -> str:
    """All tables, each below its heading."""
    steps, bounds = [], []
    launches = launches_of_step("p-conv", 20)
    eager = " - ".join(f"{launches * us:.0f}" for us in EAGER_US)
    for device in (A100, H100):
        for batch in (1, 8, 20, 64):
            asked = settings_of("p-conv", batch)
            found = plan_of(asked, device)
            if found["exchange"] == "library":
                steps.append([device.name, str(batch), *["library"] * (len(HEADER) - 2), str(launches), eager])
                continue
            parts = step_us(asked, device, found)
            numbers = [*parts.values(), sum(parts.values()), found["step_us"]]
            row = [device.name, str(batch), str(found["blocks"]), str(found["columns_at_once"])]
            steps.append([*row, *(f"{number:.1f}" for number in numbers), str(launches), eager])
            if batch != 20:
                continue
            for name, jobs in parts_of_step(asked, found["columns_at_once"]).items():
                for c, job in enumerate(jobs[:-1] if name != "up" else jobs, 1):
                    taken = [f"{value / (1e3 * device.gigahertz):.1f}" for value in clocks(job, device).values()]
                    bounds.append([device.name, f"{name}, connection {c}", str(job.count), str(job.depth), *taken])
    return "\n\n".join(
        [
            "### A free step of p-conv in one launch",
            markdown([*HEADER, "launches of eager", "eager, us"], steps),
            "### What binds a tile, B = 20, microseconds",
            markdown(["", "", "tiles", "depth", "multiply", "shared", "instructions"], bounds),
            "### A free step by a library's calls in a CUDA graph, milliseconds",
            markdown(LIBRARY_HEADER, library_rows()),
        ]
    )


if __name__ == "__main__":
    main(__doc__, report, Path(__file__))
