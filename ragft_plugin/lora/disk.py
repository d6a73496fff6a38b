"""Files of the registry: locked while they change, on the disk before they are seen, and swept after a crash."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        while True:
            with suppress(OSError):  # it gives up after ten attempts
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, waiting for it; the system lets go of it when a process dies."""
    with (folder / ".lock").open("a+b") as stream:
        _lock(stream.fileno())
        yield


def sweep(folder: Path, *, age: float = 24 * 3600) -> None:
    """Delete hidden files and folders that nobody has touched for ``age`` seconds: killed processes left them."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    if sys.platform == "win32" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
