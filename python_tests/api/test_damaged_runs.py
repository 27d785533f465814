"""Run directories whose files were damaged or made by something else: refused in a sentence, and nothing is changed."""

from __future__ import annotations

import copy
import errno
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    assert_same_run,
    ep_trainer,
    fit,
    plain,
    started,
    train_batches,
)

from ceprop_cuda import cli
from ceprop_cuda.run_directory import read_checkpoint


def assert_refused_and_nothing_changed(out: Path, kinds: Any = ValueError) -> str:
    """A resume in ``out``; returns what it said, which names a file of it in one line."""
    trainer, batches = ep_trainer(), train_batches()
    assert trainer.optimizer is not None and trainer.scheduler is not None
    parts: list[Any] = [trainer.rule.net, trainer.optimizer, trainer.scheduler, batches]
    fit(trainer, epochs=1)  # so that all of them have a state
    before = copy.deepcopy(plain([part.state_dict() for part in parts])), plain(torch.get_rng_state())
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(kinds) as refused:
        fit(trainer, out, resume=True, batches=batches)
    assert (plain([part.state_dict() for part in parts]), plain(torch.get_rng_state())) == before
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == files
    message = str(refused.value)
    assert "\n" not in message
    return message


def edited(out: Path, change: Callable[[Any], Any]) -> None:
    """The checkpoint as ``change`` leaves or returns it."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, out / "checkpoint.pt")


# ---------------------------------------------------------------------------------------------------------------
# Damage


def test_a_flipped_bit_changes_nothing_or_is_refused(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=2)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    expected = plain(read_checkpoint(tmp_path))
    bits = random.Random(0).sample(range(8 * len(whole)), 200)
    # In the list of members no checksum covers what kind of a file each is; torch takes no bytes from a folder.
    for entry in re.finditer(b"PK\x01\x02", whole):
        bits += range(8 * (entry.start() + 38), 8 * (entry.start() + 42))
    refused = 0
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert plain(read_checkpoint(tmp_path)) == expected, bit
        except ValueError as error:
            assert "checkpoint.pt" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 150
    path.write_bytes(whole)
    fit(trainer := ep_trainer(), tmp_path, resume=True)
    assert_same_run(trainer, tmp_path, "ep")


def test_a_checkpoint_with_a_flipped_bit_is_not_resumed(tmp_path: Path) -> None:
    fit(started("ep"), tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    damaged = bytearray(path.read_bytes())
    weights = next(iter(read_checkpoint(tmp_path)["network"].values())).numpy().tobytes()
    damaged[bytes(damaged).index(weights)] ^= 1
    path.write_bytes(damaged)
    message = assert_refused_and_nothing_changed(tmp_path)
    assert message.startswith(f"{path} cannot be read: it is damaged, or no checkpoint; put a copy of it in its place")


DELETE = object()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rng", DELETE, "it has no 'rng'"),
        ("rng", "seven", "its 'rng' is of type str"),
        ("rng", torch.ones(3, dtype=torch.uint8), "its 'rng' is the state of no generator"),
        ("rng", torch.ones(5056), "its 'rng' is the state of no generator"),
        ("epochs", DELETE, "it has no 'epochs'"),
        ("epochs", "3", "its 'epochs' is of type str"),
        ("epochs", 0, "its 'epochs' is 0"),
        ("epochs", True, "its 'epochs' is of type bool"),
        ("config", [], "its 'config' is of type list"),
        ("rule", None, "its 'rule' is of type NoneType"),
        ("network", DELETE, "it has no 'network'"),
        ("network", [torch.ones(2)], "its 'network' is of type list"),
        ("network", {"model.0.weight": 1.0}, "its 'network' holds something other than tensors"),
        ("network", {"model.0.weight": torch.ones(2)}, r"the network has parameters .* but that of the run has"),
        ("history", "long", "its 'history' is of type str"),
        ("history", [{"epoch": 2}], "its history holds no metrics of epoch 1"),
        ("history", [None], "its history holds no metrics of epoch 1"),
        ("recorded", DELETE, "it has no 'recorded'"),
        ("recorded", {"lines": -1, "size": 0, "checksum": 0}, "its 'recorded' names no part of metrics.jsonl"),
        ("recorded", {"lines": 1}, "its 'recorded' names no part of metrics.jsonl"),
        ("unrecorded", 3, "its 'unrecorded' is of type int"),
        ("unrecorded", [], r"metrics\.jsonl does not hold the metrics"),
        ("optimizer", DELETE, "the optimizer state is missing on one side"),
        ("optimizer", "Adam", "the optimizer state .* does not fit: optimizer is of type str, not dict"),
        ("optimizer", {}, "the optimizer state .* does not fit: optimizer has no 'state'"),
        ("optimizer", {"state": {}, "param_groups": [{}]}, r"does not fit: optimizer\.param_groups\[0\] has no 'lr'"),
        ("scheduler", {"last_epoch": 1}, "the scheduler state .* does not fit: scheduler has no 'milestones'"),
        ("train_batches", {"generator": torch.ones(2)}, "the train_batches state .* does not fit"),
        ("train_batches", "x", "the train_batches state .* does not fit"),
        (
            "kinds",
            {"optimizer": "Adam"},
            "the optimizer is of type SGD, but that of the run to .* of type Adam",
        ),
        ("kinds", "SGD", "its 'kinds' are no names"),
        ("versions", {"torch": 2}, "its 'versions' are no names"),
    ],
)
def test_a_part_that_is_missing_or_something_else_is_refused(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    fit(started("ep"), tmp_path, epochs=1)

    def change(state: dict[str, Any]) -> None:
        state[name] = value
        if value is DELETE:
            del state[name]

    edited(tmp_path, change)
    refused = assert_refused_and_nothing_changed(tmp_path)
    assert re.search(message, refused), refused


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("optimizer", "state", 0, "momentum_buffer"),
            torch.ones(2, 3),
            r"state\[0\]\.momentum_buffer does not be",
        ),
        (("optimizer", "state", 0, "momentum_buffer"), "x", r"state\[0\]\.momentum_buffer does not be"),
        (("optimizer", "state", 9), {}, "state has an entry 9, which is of no parameter"),
        (("optimizer", "param_groups", 0, "lr"), "high", r"param_groups\[0\]\.lr is of type str, not float"),
        (("optimizer", "param_groups", 0, "params"), [0], r"param_groups\[0\]\.params has 1 entries, not 4"),
        (("scheduler", "last_epoch"), "x", r"scheduler\.last_epoch is of type str, not int"),
        (("scheduler", "_last_lr"), [], r"scheduler\._last_lr has 0 entries, not 1"),
    ],
)
def test_what_the_next_step_would_stumble_over_is_refused_before(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    fit(started("ep"), tmp_path, epochs=1)

    def change(state: Any) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    edited(tmp_path, change)
    refused = assert_refused_and_nothing_changed(tmp_path)
    assert re.search(message, refused), refused


@pytest.mark.parametrize("content", [b"", b"some text\n", b"\x80\xff\x00", b"[1, 2]\n", None])
@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl", "config.json"])
def test_files_of_something_else_are_refused(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: a folder is in its place."""
    out = tmp_path / "a"
    assert cli.main(["train", "--epochs", "2", "--threads", "1", "--out", str(out)]) == 0
    (out / name).unlink()
    if content is None:
        (out / name).mkdir()
    else:
        (out / name).write_bytes(content)
    before = sorted(path.name for path in out.iterdir())
    capsys.readouterr()
    for command in (["eval", "--run", str(out)], ["train", "--resume", "--out", str(out)]):
        assert cli.main(command) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("ceprop: ") and name in shown and len(shown.splitlines()) == 1
        assert sorted(path.name for path in out.iterdir()) == before
    with pytest.raises((ValueError, OSError), match=name):
        read_checkpoint(out)


@pytest.mark.parametrize("state", [{"model": {}}, [1, 2], torch.ones(3), {}])
def test_checkpoints_of_other_programs_are_refused(state: Any, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "checkpoint.pt")
    assert "is no checkpoint that ceprop_cuda" in assert_refused_and_nothing_changed(tmp_path)


def test_an_unreadable_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(started("ep"), tmp_path, epochs=1)

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(PermissionError, match=r"^.*checkpoint\.pt cannot be read: Permission denied$"):
        fit(ep_trainer(), tmp_path, resume=True)
