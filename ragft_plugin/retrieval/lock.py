"""The writer's lock: one process at a time changes a knowledge base; the kernel frees it when that process dies."""

from __future__ import annotations

import os
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

from ragft_plugin.errors import StoreError

if sys.platform == "win32":
    import msvcrt

    _BYTE = 1 << 20  # beyond the text, which others read

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock_within(descriptor: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return _lock(descriptor)
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, 64).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return "unknown"


def _note(descriptor: int) -> None:
    """Tell others who holds the lock. It is held without that, too: the disk may be full."""
    with suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))


def _free(descriptor: int, pid: int) -> None:
    # A forked child has the same lock by its copy of the descriptor, and each could unlock it for both: the process
    # that took it does so explicitly, or it would last as long as the child; the child only closes its copy.
    with suppress(OSError):
        if pid == os.getpid():
            _unlock(descriptor)
    os.close(descriptor)


class WriterLock:
    """An exclusive lock on a file of the knowledge base, held from the first change until ``release``.

    One that is dropped without it is released when it is collected.

    Args:
        path: the file; it is made where missing and stays behind, empty of meaning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = 0
        self._freeing: weakref.finalize[[int, int], WriterLock] | None = None

    @property
    def held(self) -> bool:
        """Whether it is held, by this process or by the one that it was forked from."""
        return self._freeing is not None

    def acquire(self, *, patience: float = 0.5) -> None:
        """Take the lock, or keep it.

        Args:
            patience: seconds to wait; a reader may hold it for a moment to finish what a dead writer has left.

        Raises:
            StoreError: another process, or another ``KnowledgeBase`` of this one, holds it; a parent process took
                it before it forked this one; or the directory cannot be written.
        """
        if self._freeing is not None:
            if self._pid != os.getpid():
                raise StoreError(
                    f"{self._path.parent} was opened for writing by process {self._pid}, of which this one is a fork; "
                    "open it again in this process, once the other has closed it"
                )
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise StoreError(
                f"{self._path.parent} cannot be written ({error.strerror}); open it with read_only=True"
            ) from error
        self._pid = os.getpid()
        self._freeing = weakref.finalize(self, _free, descriptor, self._pid)
        self._freeing.atexit = False  # a thread may still be writing then; the kernel frees it in any case
        try:
            _lock_within(descriptor, patience)
        except OSError as error:
            holder = _holder(descriptor)
            self.release()
            raise StoreError(
                f"{self._path.parent} is being changed by process {holder}; only one may write at a time. "
                "Close the other one, or open this one with read_only=True"
            ) from error
        except BaseException:
            self.release()
            raise
        _note(descriptor)

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._freeing is not None:
            self._freeing()
            self._freeing = None
