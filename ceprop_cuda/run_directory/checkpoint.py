"""A run's state as the bytes of a file: nothing is taken from damaged bytes, nor from a state of something else."""

from __future__ import annotations

import copy
import io
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..output.messages import warn
from ..version import __version__

KINDS_MATTER = ("optimizer", "scheduler")  # batches may come from anything that knows the state
DEFINE_RESULTS = ("ceprop_cuda", "torch", "cpu_kernels")  # to the last bit


class Recorded(NamedTuple):
    """The first lines of metrics.jsonl, which a checkpoint refers to."""

    lines: int = 0
    size: int = 0  # bytes
    checksum: int = 0


class GeneratorState:
    """A DataLoader's generator as a part of the checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])


def versions() -> dict[str, str]:
    """Of what runs here."""
    return {
        "ceprop_cuda": __version__,
        "torch": str(torch.__version__),  # plain text, which it is not
        "python": platform.python_version(),
        "cpu_kernels": ops.build_info()["cpu_kernels"],
    }


def packed(plan: Mapping[str, Any], parts: Mapping[str, Any], **more: Any) -> bytes:
    """A checkpoint.

    Args:
        plan: "epochs", "config" and "rule", all JSON values.
        parts: everything with a state_dict, by its name in the checkpoint; None where there is no such part.
        more: of plain data.
    """
    states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    kinds = {name: type(part).__name__ for name, part in parts.items() if name in KINDS_MATTER}
    file = io.BytesIO()
    rng = torch.get_rng_state()
    torch.save({**plan, **more, "versions": versions(), "kinds": kinds, "rng": rng, **states}, file)
    return file.getvalue()


def unpacked(content: bytes, path: Path) -> dict[str, Any]:
    """What :func:`packed` made ``content`` of, on the CPU; ValueError, which names ``path``, if it is anything else or
    has changed since."""
    try:
        state = torch.load(_checked_archive(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make both readers stumble in any way
        raise ValueError(
            f"{path} cannot be read: it is damaged, or no checkpoint; put a copy of it in its place, or begin anew in "
            "another folder"
        ) from error
    reason = _why_foreign(state)
    if reason is not None:
        raise ValueError(f"{path} is no checkpoint that ceprop_cuda {__version__} can go on from: {reason}")
    return state


def refuse_what_cannot_be_kept(parts: Mapping[str, Any]) -> None:
    """TypeError if one of ``parts`` has a state that no checkpoint gives back, as NumPy's arrays: better before the
    training than at its resume."""
    for name, part in parts.items():
        if part is None:
            continue
        file = io.BytesIO()
        try:
            torch.save(part.state_dict(), file)
            torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever pickle and torch raise of anybody's objects
            raise TypeError(
                f"the state_dict() of the {name} must be made of tensors, numbers, text, lists and dicts to be kept in "
                "a checkpoint: change it, or leave out= out"
            ) from error


def _checked_archive(content: bytes) -> io.BytesIO:
    """The archive ``content`` written anew from members whose checksums are right.

    torch's own reader looks at no checksum; and of flipped bits in the lists of members, which have none, there are
    some that it alone heeds: one makes it take a tensor for an empty folder, and return memory as it finds it.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(checked, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    checked.seek(0)
    return checked


def _why_foreign(state: Any) -> str | None:
    """Why ``state`` is none of a run, or None if it is one."""
    if not isinstance(state, dict):
        return f"it holds an object of type {type(state).__name__}"
    expected: dict[str, type] = {"epochs": int, "config": dict, "rule": dict, "network": dict, "rng": Tensor}
    expected |= {"history": list} if "history" in state else {"recorded": dict, "unrecorded": list}
    for name, kind in expected.items():
        if name not in state:
            return f"it has no {name!r}"
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            return f"its {name!r} is of type {type(state[name]).__name__}"
    if state["epochs"] < 1:
        return f"its 'epochs' is {state['epochs']}"
    recorded = state["recorded"] if "recorded" in expected else Recorded()._asdict()
    if recorded.keys() != set(Recorded._fields) or not all(type(n) is int and n >= 0 for n in recorded.values()):
        return "its 'recorded' names no part of metrics.jsonl"
    for epoch, metrics in enumerate(state["history" if "history" in state else "unrecorded"], 1 + recorded["lines"]):
        if not _is_of_epoch(metrics, epoch):
            return f"its history holds no metrics of epoch {epoch}"
    for name in ("kinds", "versions"):  # which earlier versions did not save
        told = state.get(name, {})
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            return f"its {name!r} are no names"
    if not all(isinstance(name, str) and isinstance(p, Tensor) for name, p in state["network"].items()):
        return "its 'network' holds something other than tensors by their names"
    try:
        torch.Generator("cpu").set_state(state["rng"])
    except (RuntimeError, TypeError):
        return "its 'rng' is the state of no generator"
    return None


def _is_of_epoch(metrics: Any, epoch: int) -> bool:
    if not isinstance(metrics, dict) or metrics.get("epoch") != epoch:
        return False
    numbers = [metrics.get(name, "") for name in ("train_error", "test_error", "train_loss", "seconds")]
    return all(number is None or type(number) in (int, float) for number in numbers)


# ---------------------------------------------------------------------------------------------------------------
# Going on


def restore(checkpoint: Mapping[str, Any], plan: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Give ``parts`` and torch's generator the states they had; ValueError, and nothing is changed, if they do not
    fit."""
    _refuse_another_plan(checkpoint, plan)
    _refuse_other_parts(checkpoint, parts)
    present = {name: part for name, part in parts.items() if part is not None}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in present.items()}
    try:
        for name, part in present.items():
            part.load_state_dict(checkpoint[name])
    except Exception as error:  # a part may be anybody's, and its state anything
        for changed, part in present.items():
            part.load_state_dict(before[changed])
        raise ValueError(f"the {name} state of the run to resume does not fit: {error!r}") from error
    torch.set_rng_state(checkpoint["rng"])
    _tell_other_versions(checkpoint.get("versions", {}))


def refuse_another_network(net: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """ValueError unless ``net`` can load this state."""
    for what, of in (("parameters", lambda p: tuple(p.shape)), ("dtypes", lambda p: str(p.dtype))):
        own, others = ({name: of(p) for name, p in state.items()} for state in (net.state_dict(), saved))
        if own != others:
            raise ValueError(f"the network has {what} {own}, but that of the run has {others}")


def _refuse_another_plan(checkpoint: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    for part in ("config", "rule"):
        old, new = checkpoint[part], plan[part]
        for key in [*new, *old]:  # another rule is told first by its name, then by the settings that it has or lacks
            if old.get(key) != new.get(key):
                raise ValueError(f"{part}[{key!r}] is {new.get(key)!r}, but the run to resume has {old.get(key)!r}")
    finished = len(checkpoint["history"])
    if finished > plan["epochs"]:
        raise ValueError(f"epochs={plan['epochs']}, but the run to resume has finished {finished} already")


def _refuse_other_parts(checkpoint: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    part: Any
    kinds = checkpoint.get("kinds", {})
    for name, part in parts.items():
        saved = checkpoint.get(name)
        if (part is None) != (saved is None):  # no such key: of a version without such parts
            had = "none" if part is not None else "one"
            raise ValueError(f"the {name} state is missing on one side: the run to resume has {had}")
        kind = type(part).__name__
        if kinds.get(name, kind) != kind:
            raise ValueError(f"the {name} is of type {kind}, but that of the run to resume was of type {kinds[name]}")
    refuse_another_network(parts["network"], checkpoint["network"])
    same_torch = checkpoint.get("versions", {}).get("torch", torch.__version__) == torch.__version__
    for name in KINDS_MATTER:
        part = parts.get(name)
        if not type(part).__module__.startswith("torch.optim"):  # what else there may be knows its state best
            continue
        own, saved = part.state_dict(), checkpoint[name]
        if name == "optimizer" and isinstance(saved, dict) and isinstance(saved.get("state"), dict):
            own["state"] = saved["state"]  # there is none of it before the first step
        reason = _difference(own, saved, name, same_torch)
        if reason is None and name == "optimizer":
            reason = _wrong_shape(part, saved)
        if reason is not None:
            raise ValueError(f"the {name} state of the run to resume does not fit: {reason}")


def _wrong_shape(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> str | None:
    """What the ``saved`` state keeps of a parameter and cannot be of it, or None. Only the first step would tell."""
    if isinstance(optimizer, torch.optim.Adafactor):  # others keep what has the parameter's shape, or is one number
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    shapes = {number: p.shape for number, p in zip(numbers, parameters, strict=True)}
    for number, kept in saved["state"].items():
        if number not in shapes or not isinstance(kept, dict):
            return f"state has an entry {number!r}, which is of no parameter"
        for name, value in kept.items():
            if isinstance(value, Tensor):
                fits = value.dim() == 0 or value.shape == shapes[number]
            else:
                fits = value is None or isinstance(value, (int, float))
            if not fits:
                return f"state[{number}].{name} does not belong to a parameter of shape {tuple(shapes[number])}"
    return None


def _difference(own: Any, saved: Any, where: str, same_torch: bool) -> str | None:
    """Where ``saved`` is made in another way than ``own``, or None: other kinds of values, not other values. Another
    version of torch may know more of them."""
    if own is None or saved is None:
        return None
    if _kind(own) is not _kind(saved):
        return f"{where} is of type {type(saved).__name__}, not {type(own).__name__}"
    if isinstance(own, dict):
        different = own.keys() ^ saved.keys() if same_torch else saved.keys() - own.keys()
        if different:
            name = next(key for key in [*own, *saved] if key in different)
            return f"{where} has {'no' if name in own else 'a'} {name!r}"
        pairs = [(f"{where}.{name}", own[name], saved[name]) for name in own if name in saved]
    elif isinstance(own, (list, tuple)):
        if len(own) != len(saved):
            return f"{where} has {len(saved)} entries, not {len(own)}"
        pairs = [(f"{where}[{index}]", o, s) for index, (o, s) in enumerate(zip(own, saved, strict=True))]
    else:
        pairs = []
    return next(filter(None, (_difference(o, s, name, same_torch) for name, o, s in pairs)), None)


def _kind(value: Any) -> type:
    """The type, but one for all numbers, be they in a tensor, one for all lists and one for all dicts."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.dim() == 0):
        return float
    if isinstance(value, (list, tuple)):
        return list
    return dict if isinstance(value, dict) else type(value)


def _tell_other_versions(saved: Mapping[str, str]) -> None:
    now = versions()
    other = [name for name in DEFINE_RESULTS if saved.get(name, now[name]) != now[name]]
    if other:
        told = ", ".join(f"{name} {saved[name]}, now {now[name]}" for name in other)
        warn(f"the run to resume was made by {told}: from here on its numbers may differ in the last places")
