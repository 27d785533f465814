"""Files that survive kills, full disks and a second process, and errors about them in words."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .messages import warn

LOCK = ".lock"  # in a folder that a process works in
UNFINISHED = ".tmp"  # how the names of files end that are not in place yet

REASONS = {
    errno.EEXIST: "there is a file in its place",
    errno.ENOSPC: "its disk is full; make room there and try again",
    errno.EDQUOT: "your quota of its disk is used up; make room there and try again",
    errno.EFBIG: "it would be larger than the largest file allowed here (`ulimit -f`)",
}


@contextmanager
def in_words(path: Path, done: str) -> Iterator[None]:
    """Turn what the system says of a failure within into a sentence: ``path`` cannot be ``done``, because."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # it is a sentence already
            raise
        reason = REASONS.get(error.errno or 0, error.strerror)
        told = type(error)(f"{path} cannot be {done}: {reason}")
        told.errno = error.errno
        raise told from error


def read(path: Path) -> bytes:
    """All of a file; a folder or a pipe in its place is an OSError like any other."""
    with in_words(path, "read"):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(f"{path} cannot be read: it is no file")
        return path.read_bytes()


def write_atomically(path: Path, content: bytes, remove_first: Path | None = None) -> None:
    """Put ``content`` at ``path``: whoever reads it, or kills this, finds the old file or the new one.

    The unfinished file lies beside it, under a name of its own: of two processes that write, one wins. A kill leaves it
    there, see :func:`remove_unfinished`; a failure does not. The file ``remove_first`` is removed once nothing can fail
    any more but to put the new one in place.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    with in_words(path, "written"):
        # As tempfile.mkstemp does, which no link leads astray, but readable to whom the umask lets read.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                _write(descriptor, content)
            finally:
                os.close(descriptor)
            if remove_first is not None:
                remove(remove_first)
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise


def append(path: Path, content: bytes) -> None:
    """Put ``content`` behind what the file holds, or, if that fails, nothing. A kill may leave a part of it."""
    with in_words(path, "written"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write(descriptor, content)
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    """All of it, and to the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def remove(path: Path) -> None:
    """If it is there."""
    with in_words(path, "removed"), suppress(FileNotFoundError):
        os.unlink(path)


def remove_unfinished(path: Path) -> None:
    """What kills left of writes to ``path``; nobody else may be writing there."""
    for unfinished in path.parent.glob(f"{path.name}*{UNFINISHED}"):
        remove(unfinished)


# ---------------------------------------------------------------------------------------------------------------
# One process at a time

_held: set[int] = set()  # descriptors of locks


def _leave_locks_to_the_parent() -> None:
    """A lock lasts until its last descriptor is closed: that of a killed process shall not live on in its workers."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep the folder ``path``, which is made if need be, to this process; BlockingIOError, in words, if another one
    has it. The kernel ends a lock with its process, however that ends."""
    with in_words(path, "used"):
        os.makedirs(path, exist_ok=True)
        descriptor = _locked(path)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # this is no forked child
            _held.remove(descriptor)
            with suppress(OSError):  # the folder may be gone
                os.unlink(path / LOCK)
            os.close(descriptor)


def _locked(path: Path) -> int:
    """The descriptor of the folder's lock, held."""
    while True:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(
                f"another process is training in {path}: wait until it has ended, or name another folder"
            ) from None
        except OSError as error:  # a file system without locks
            warn(f"{path} cannot be locked ({error.strerror}): see to it that no other process trains there")
            return descriptor
        # Who held it before may have removed it after it was opened here, and a third process may have made another.
        try:
            if os.path.samestat(os.stat(path / LOCK), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
