"""A prediction of what the CUDA kernels take, from their source and from numbers of data sheets. Nothing is measured.

    python benchmarks/cuda_model/dense.py            # the tables
    python benchmarks/cuda_model/dense.py --update   # and puts them below the text of dense.md, which explains them

Follows the busiest block of a launch through a training step: what it brings through L2, reads and writes in shared
memory, multiplies, and how often all of its threads wait for one load; then the barriers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from dense_block import LOOPS, Loops, Setting, total
from dense_step import Model, Part, case_of, predicted_ms, setting_of, us
from devices import DEVICES, EAGER_US, H100, Device
from eager_launches import eager_launches, eager_launches_of_steps
from tables import main, markdown

from ceprop_cuda.bench.cases import BATCH_SIZES

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
    changes: dict[str, tuple[Device, Loops]] = {
        "four packs under way": (H100, Loops(packs=4)),
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
        ("What single changes would do, H100, grid, exact", sensitivity_table()),
        ("Batch sizes, milliseconds", batches_table()),
        (
            "Both forms of the inner updates, in a grid, milliseconds; taken is that with fewer operations",
            forms_table(),
        ),
        ("Free step", steps_table(shapes, Model.free_step)),
        ("Nudged step of continual EP", steps_table(learning, Model.nudged_step)),
        ("Operators of eager PyTorch that launch a kernel", launches_table()),
        ("Constants", constants_table()),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)


if __name__ == "__main__":
    main(__doc__, report, Path(__file__))
