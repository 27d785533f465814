"""A prediction of what the CUDA kernel of ConvNets takes, from its plans and from numbers of data sheets. Nothing is
measured.

    python benchmarks/cuda_convolution_model.py            # the tables
    python benchmarks/cuda_convolution_model.py --update   # and puts them below the text of cuda_convolution_model.md

Follows the busiest block of a launch through a free step: what it gathers, reads in shared memory and multiplies; then
the barriers. What is learnt is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from cuda_model import A100, EAGER_US, H100, Device, Launches, main, markdown

import ceprop_cuda as cep
from ceprop_cuda import _C, ops
from ceprop_cuda.presets import PRESETS

IMAGE, CLASSES = (1, 28, 28), 10
TILE = 16  # units
INSTRUCTIONS_OF_A_GATHER = 12  # of a number on its way to shared memory: assumption
INSTRUCTIONS_OF_AN_OPERAND = 18 / 16  # of a multiply-add, with its loads from shared memory: counted in the source
ISSUED = 128  # instructions of threads a clock and multiprocessor: vendor's data
TILE_WAIT = 2000  # clocks until a tile's first numbers are there and its last are stored: assumption


@dataclass(frozen=True)
class Tiles:
    """Of one job: how many, and what each multiplies."""

    count: int
    depth: int
    columns: int


def tiles(units: int, columns: int, window: int, depth: int, at_once: int) -> Tiles:
    held = min(at_once, -(-columns // 8) * 8)
    return Tiles(-(-units // TILE) * -(-columns // (held // window * window)), depth, held)


def settings_of(preset: str, batch: int) -> dict[str, Any]:
    """What the planner is asked of a preset, for any device."""
    net = PRESETS[preset].network(IMAGE, CLASSES)
    asked = ops._launch_settings(net.circuit(), torch.empty(batch, *IMAGE, device="meta"), "exact")
    return {name: value for name, value in asked.items() if name != "index"}


def plan_of(asked: dict[str, Any], device: Device) -> dict[str, Any]:
    """ValueError where the planner refuses."""
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
        net, x, y = few.network(IMAGE, CLASSES), torch.rand(batch, *IMAGE), torch.arange(batch) % CLASSES
        rule = few.rule(net, "reference")
        with Launches() as counted:
            if isinstance(rule, cep.CEP):
                rule.step(x, y)
            else:
                rule.backward(x, y)
        return sum(counted.by_name.values())

    return launches(3) - launches(2)


HEADER = ["", "B", "blocks", "columns at once", "up, us", "down and move, us", "step, us", "planner's step, us"]


def report() -> str:
    """Both tables, each below its heading."""
    steps, bounds = [], []
    launches = launches_of_step("p-conv", 20)
    eager = " - ".join(f"{launches * us:.0f}" for us in EAGER_US)
    for device in (A100, H100):
        for batch in (1, 8, 20, 64):
            asked = settings_of("p-conv", batch)
            try:
                found = plan_of(asked, device)
            except ValueError:
                steps.append([device.name, str(batch), *["refused"] * (len(HEADER) - 2), str(launches), eager])
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
            "### A free step of p-conv",
            markdown([*HEADER, "launches of eager", "eager, us"], steps),
            "### What binds a tile, B = 20, microseconds",
            markdown(["", "", "tiles", "depth", "multiply", "shared", "instructions"], bounds),
        ]
    )


if __name__ == "__main__":
    main(__doc__, report, Path(__file__))
