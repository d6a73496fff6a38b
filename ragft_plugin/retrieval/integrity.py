"""Integrity: is a file byte for byte the one that was written?

Small files are checked before they are used. A file of a gigabyte would make opening wait for the disk, so it is
checked by a thread while searches already go on; from the moment it is found damaged, every use of it is an error.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from ragft_plugin.errors import StoreError

logger = logging.getLogger(__name__)

LARGE = 128 * 2**20  # bytes; about a tenth of a second to check
_BLOCK = 2**20
Stopped = Callable[[], bool]


class Check:
    """A look for damage, at once or in a thread.

    Args:
        name: of what is checked.
        find: returns what is wrong, None if nothing is; gives up when the function it is given says so.
    """

    def __init__(self, name: str, find: Callable[[Stopped], str | None]) -> None:
        self._name, self._find = name, find
        self._stopped = False
        self._problem: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Check in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"check {self._name}", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Check now, or wait for the thread.

        Raises:
            StoreError: it is damaged.
        """
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        self.so_far()

    def so_far(self) -> None:
        """Raise if it is known to be damaged; do not wait.

        Raises:
            StoreError: naming the file.
        """
        if self._problem is not None:
            raise StoreError(self._problem)

    def stop(self) -> None:
        """Give up, when the knowledge base is closed."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self._problem = self._find(lambda: self._stopped)
        if self._problem is not None and self._thread is not None:
            logger.error("%s", self._problem)


def check_of_file(path: Path, digest: str) -> tuple[Check, int]:
    """Return the comparison of a file with its SHA-256, and its size in bytes.

    The file is opened at once, so that a later deletion does not matter.

    Raises:
        OSError: it cannot be opened.
    """
    opened = open_plain(path)

    def find(stopped: Stopped) -> str | None:
        found = hashlib.sha256()
        try:
            with opened as file:
                while block := file.read(_BLOCK):
                    if stopped():
                        return None
                    found.update(block)
        except OSError as error:
            return f"{path} cannot be read: {error}"
        if found.hexdigest() == digest:
            return None
        return (
            f"{path} is damaged: its SHA-256 is {found.hexdigest()}, the catalogue says {digest}. "
            "Restore it from a copy or index the documents again"
        )

    return Check(path.name, find), os.fstat(opened.fileno()).st_size


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading that is no link: one in a stranger's directory could point anywhere."""
    kinds = ("O_NOFOLLOW", "O_BINARY", "O_NONBLOCK")  # opening a pipe would wait for somebody to write to it
    descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, kind, 0) for kind in kinds))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")
