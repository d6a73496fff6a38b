"""Drafts: a file is written beside its place, synced, and renamed, so that it is whole or not there at all."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[io.BufferedRandom]:
    """Open a new file that takes the place of ``path`` when it is finished, and is gone when that fails.

    Its name cannot be guessed and its file is new: a name that can be guessed could be a link in a stranger's
    directory, and writing would follow it.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    file = beside.open("x+b")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
