"""Integrity: is a file byte for byte the one that was written?

Small files are checked before they are used. A file of a gigabyte would make opening wait for the disk, so it is
checked by a thread while searches already go on; from the moment it is found damaged, every use of it is an error.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from pathlib import Path

from ragft_plugin.errors import StoreError

logger = logging.getLogger(__name__)

LARGE = 128 * 2**20  # bytes; about a tenth of a second to check
_BLOCK = 2**20


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading that is no link: one in a stranger's directory could point anywhere."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    return os.fdopen(descriptor, "rb")


class Check:
    """A comparison of a file with its SHA-256.

    Args:
        path: the file; opened at once, so that a later deletion does not matter.
        digest: expected, in hex.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._path, self._digest = path, digest
        self._file = open_plain(path)
        self.size = os.fstat(self._file.fileno()).st_size
        self._stopped = False
        self._problem: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Check in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"check {self._path.name}", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Check now, or wait for the thread.

        Raises:
            StoreError: the file is damaged.
        """
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        self.so_far()

    def so_far(self) -> None:
        """Raise if the file is known to be damaged; do not wait.

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
        found = hashlib.sha256()
        try:
            with self._file as file:
                while block := file.read(_BLOCK):
                    if self._stopped:
                        return
                    found.update(block)
        except OSError as error:
            self._problem = f"{self._path} cannot be read: {error}"
            return
        if found.hexdigest() != self._digest:
            self._problem = (
                f"{self._path} is damaged: its SHA-256 is {found.hexdigest()}, the catalogue says {self._digest}. "
                "Restore it from a copy or index the documents again"
            )
            logger.error("%s", self._problem)
