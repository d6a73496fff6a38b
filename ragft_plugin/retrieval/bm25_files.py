"""The files of the BM25 index: whether tantivy's folder is whole and plain, and who may read it.

tantivy deletes what ``.managed.json`` names and the index does not need, and it opens every file, its locks too, by
following links. In a stranger's directory both lead outside, so a folder is opened only where neither can.
"""

from __future__ import annotations

import json
import os
import re
import struct
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_META, _MANAGED, _LOCK = "meta.json", ".managed.json", ".tantivy-writer.lock"
_PARTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")  # every segment of tantivy has these files
_NAME = re.compile(r"meta\.json|[0-9a-f]{32}(\.[0-9a-z]+){1,2}")
_MAGIC = 1337  # ends every file of tantivy, before it the length of a JSON footer with the CRC-32 of the rest
_Segment = tuple[str, int, tuple[int, int] | None]  # name, documents, and of deletions: stamp, number
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)


def find_damage(folder: Path) -> list[str]:
    """Return the files that are damaged, missing, or not what tantivy would have there.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        odd = sorted(entry.path for entry in os.scandir(folder) if not entry.is_file(follow_symlinks=False))
        if odd:
            return odd
        for _ in range(5):
            meta, managed = _meta(folder), _managed(folder)
            if meta is None or managed is None:
                return [str(folder / (_META if meta is None else _MANAGED))]
            bad = [str(folder / name) for name in sorted(_damaged(folder, meta["segments"], managed))]
            if not bad or _meta(folder) == meta:
                return bad
    except FileNotFoundError as error:
        return [error.filename]
    return []  # a writer is merging all the time, so it is alive and well


def opstamp_of(folder: Path) -> int | None:
    """Return the stamp of tantivy's last commit, None where it cannot be read."""
    try:
        meta = _meta(folder)
    except OSError:
        return None
    return None if meta is None else int(meta["opstamp"])


def share(folder: Path) -> None:
    """Let those read tantivy's folder who may read its other files: two, it writes for their owner alone.

    Args:
        folder: with a lock of tantivy's, which has the permissions that the umask gives.
    """
    with suppress(OSError):  # a merge is just replacing one, or it is another user's, who sees to it
        wanted = (folder / _LOCK).stat().st_mode & 0o666
        for path in (folder / _META, folder / _MANAGED):
            if path.stat().st_mode & 0o666 != wanted:
                path.chmod(wanted)


def _meta(folder: Path) -> dict[str, Any] | None:
    """Return what tantivy has committed, None where that is malformed."""
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
        return {"opstamp": int(meta["opstamp"]), "segments": list(map(_segment, meta["segments"]))}
    except _MALFORMED:
        return None


def _segment(entry: dict[str, Any]) -> _Segment:
    deletes = entry["deletes"]
    deleted = None if deletes is None else (int(deletes["opstamp"]), int(deletes["num_deleted_docs"]))
    return uuid.UUID(entry["segment_id"]).hex, int(entry["max_doc"]), deleted


def _managed(folder: Path) -> set[str] | None:
    """Return the names of the files that tantivy may delete, None where they are malformed or not all its own."""
    try:
        names = json.loads((folder / _MANAGED).read_text("utf-8"))
        return set(names) if isinstance(names, list) and all(map(_NAME.fullmatch, names)) else None
    except _MALFORMED:
        return None


def _damaged(folder: Path, segments: Iterable[_Segment], managed: set[str]) -> set[str]:
    bad: set[str] = set()
    for name, documents, deletes in segments:
        files = [f"{name}.{part}" for part in _PARTS]
        bad |= {file for file in files if _content(folder / file) is None}
        if deletes is not None:
            stamp, deleted = deletes
            files.append(f"{name}.{stamp}.del")
            alive = _content(folder / files[-1])
            if alive is None:
                bad.add(files[-1])
            elif not _add_up(alive, documents, deleted):
                bad.add(_META)
        if not managed.issuperset(files):
            bad.add(_MANAGED)
    return bad


def _content(path: Path) -> bytes | None:
    """Return what tantivy has written to a file, None where it is missing or its CRC-32 does not hold."""
    try:
        raw = path.read_bytes()
        size, magic = struct.unpack("<II", raw[-8:])
        content, footer = raw[: -8 - size], json.loads(raw[-8 - size : -8])
        return content if magic == _MAGIC and footer["crc"] == zlib.crc32(content) else None
    except (FileNotFoundError, *_MALFORMED):
        return None


def _add_up(alive: bytes, documents: int, deleted: int) -> bool:
    """Say whether the bits of living documents, after their number in 4 bytes, are as many as ``meta.json`` says.

    That file has no checksum, and scores depend on its numbers. Where nothing is deleted, the number of documents is
    compared with the catalogue's.
    """
    return int.from_bytes(alive[:4], "little") == documents and (
        int.from_bytes(alive[4:], "little").bit_count() == documents - deleted
    )
