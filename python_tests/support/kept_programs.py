"""Programs that tests compile, kept from run to run: the name of each says what it is made of.

What makes an object is the source that the preprocessor leaves, the flags and the compiler; what makes a program are
its objects and the other words for the linker. Workers of one run share them, too: none compiles what another does.

As a script it stands where g++ stands, for whoever builds by a compiler that the environment names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from project import ROOT

KEPT = ROOT / "build" / "test_programs"
UNUSED = 14 * 24 * 3600  # seconds after which a file goes that no test has asked for


def run(*command: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout)


def printed_by(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def compiler() -> str:
    return printed_by("g++", "--version")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time for each name. The system gives the lock back, however a process ends."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "locks").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))
        yield


def kept(name: str, made_of: Sequence[str], make: Callable[[Path], object]) -> Path:
    """The file that ``make`` writes, or has written before of the same."""
    key = hashlib.sha256("\0".join([compiler(), *made_of]).encode()).hexdigest()[:32]
    file = KEPT / f"{name}-{key}"
    with locked(key):
        if not file.exists():
            drop_unused()
            part = KEPT / f"{key}.part"
            make(part)
            part.rename(file)  # whole, or not there
        os.utime(file)
    return file


def drop_unused() -> None:
    for file in KEPT.iterdir():
        with suppress(FileNotFoundError):  # another process renames its file, or removes the same
            if file.name != "locks" and file.stat().st_mtime < time.time() - UNUSED:
                file.unlink()


def object_of(source: Path, *flags: object, copy: Path | None = None) -> Path:
    """``source`` compiled. ``copy`` is a folder that holds a changed copy of the project for a while: where it lies
    makes no difference to what is made."""
    command = ["g++", *map(str, flags)]
    text = printed_by(*command, "-E", source)
    if copy is None:
        return kept(source.stem, [*command, text], lambda to: printed_by(*command, "-c", source, "-o", to))
    made_of = [word.replace(str(copy), "copy") for word in (*command, text)]
    command.append(f"-ffile-prefix-map={copy}=copy")
    return kept(source.stem, made_of, lambda to: printed_by(*command, "-c", source, "-o", to))


def program_of(name: str, *words: object) -> Path:
    """Linked of these objects, libraries and flags."""
    command = ["g++", *map(str, words)]
    return kept(name, command, lambda to: printed_by(*command, "-o", to))


def main() -> None:
    words = sys.argv[1:]
    if "-c" not in words:
        os.execvp("g++", ["g++", *words])
    to = words.pop(words.index("-o") + 1)
    (source,) = (word for word in words if "/csrc/" in word and word.endswith(".cpp"))
    flags = [word for word in words if word not in ("-c", "-o", source)]
    shutil.copyfile(object_of(Path(source), *flags, copy=Path(source.split("/csrc/")[0])), to)


if __name__ == "__main__":
    main()
