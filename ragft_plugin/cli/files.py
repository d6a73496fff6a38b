"""Files that commands write: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ragft_plugin.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, then put it there.

    Raises:
        ConfigError: if the folder cannot be written to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another place with --out") from None
