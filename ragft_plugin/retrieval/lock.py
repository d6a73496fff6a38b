"""The writer's lock: one process at a time changes a knowledge base; the kernel frees it when that process dies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ragft_plugin.errors import StoreError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text, which others read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_within(descriptor: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return _lock(descriptor)
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


class WriterLock:
    """An exclusive lock on a file of the knowledge base, held from the first change until ``release``.

    Args:
        path: the file; it is made where missing and stays behind, empty of meaning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, *, patience: float = 0.5) -> None:
        """Take the lock, or keep it.

        Args:
            patience: seconds to wait; a reader may hold it for a moment to finish what a dead writer has left.

        Raises:
            StoreError: another process, or another ``KnowledgeBase`` of this one, holds it; or the directory
                cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise StoreError(
                f"{self._path.parent} cannot be written ({error.strerror}); open it with read_only=True"
            ) from error
        try:
            _lock_within(descriptor, patience)
        except OSError as error:
            holder = os.read(descriptor, 64).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"{self._path.parent} is being changed by process {holder}; only one may write at a time. "
                "Close the other one, or open this one with read_only=True"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
