"""Programs that tests compile are compiled once, and again whenever something that they are made of changes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import kept_programs
import pytest
from kept_programs import kept, object_of, program_of, run

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_programs, "KEPT", tmp_path / "kept")


def project(folder: Path, number: int = 1) -> Path:
    folder.mkdir()
    (folder / "number.h").write_text(f"inline int number() {{ return {number}; }}\n")
    source = folder / "main.cpp"
    source.write_text('#include "number.h"\nint main() { return number() + MORE; }\n')
    return source


def test_the_same_is_made_once(tmp_path: Path) -> None:
    source = project(tmp_path / "a")
    made = object_of(source, "-DMORE=1")
    written = made.stat().st_ino
    assert object_of(source, "-DMORE=1") == made
    assert made.stat().st_ino == written
    assert run(program_of("main", made)).returncode == 2


def test_another_flag_or_header_makes_another_program(tmp_path: Path) -> None:
    source = project(tmp_path / "a")
    objects = [object_of(source, "-DMORE=1"), object_of(source, "-DMORE=2")]
    (source.parent / "number.h").write_text("inline int number() { return 5; }\n")
    objects.append(object_of(source, "-DMORE=1"))
    assert [run(program_of("main", made)).returncode for made in objects] == [2, 3, 6]


def test_where_a_copy_lies_makes_no_difference(tmp_path: Path) -> None:
    sources = [project(tmp_path / "a"), project(tmp_path / "b"), project(tmp_path / "c", number=4)]
    first, second, other = (object_of(source, "-DMORE=1", "-g", copy=source.parent) for source in sources)
    assert first == second != other
    assert str(tmp_path).encode() not in first.read_bytes()


def test_processes_that_ask_at_once_make_it_once(tmp_path: Path) -> None:
    def make(to: Path) -> None:
        with (tmp_path / "makers").open("a") as makers:
            makers.write("x")
        time.sleep(0.2)
        to.write_text("made")

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            kept("a", ["b"], make)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert (tmp_path / "makers").read_text() == "x"


def test_what_nobody_asks_for_is_removed(tmp_path: Path) -> None:
    old, used = (kept(name, [name], lambda to: to.write_text("")) for name in ("old", "used"))
    long_ago = time.time() - kept_programs.UNUSED - 60
    for file in (old, used):
        os.utime(file, (long_ago, long_ago))
    kept("used", ["used"], lambda to: to.write_text(""))  # is there
    kept("new", ["new"], lambda to: to.write_text(""))
    assert used.exists() and not old.exists()
