"""GPUs, as far as the models know them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


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


def known_device(name: str) -> Device | None:
    """The device that the model knows under what CUDA calls it, e.g. "NVIDIA H100 80GB HBM3"; None: none."""
    chips = {"A100": A100, "H100": H100, "H200": H100}  # H200: the same chip with other memory
    return next(
        (chip for name_of_chip, chip in chips.items() if name_of_chip in name and "H100 PCIe" not in name), None
    )
