"""Segments: immutable files of row numbers and unit vectors, and exact search over them.

A segment is two ``.npy`` files, written beside, synced, renamed, and named by the catalogue together with their
SHA-256. They are memory-mapped, and processes share the pages. Small files are checked when they are opened, large
ones by a thread from then on (``retrieval.integrity``).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.approximate import Approximate, load
from ragft_plugin.retrieval.drafts import draft_of
from ragft_plugin.retrieval.halves import LEAST, Halves
from ragft_plugin.retrieval.integrity import LARGE, Check, check_of_file
from ragft_plugin.retrieval.records import SegmentRecord

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
INDEXES = "indexes"  # beside the folder of the segments
_FEW = 20  # queries; more are multiplied with all vectors at once, which is not waiting for memory
_EXACT = 20_000  # so few allowed vectors are searched exactly, index or not
_PRODUCTS = 2**24  # computed at once
_SPARE = 4  # candidates beyond k, so that of equal vectors at the end the first in order are returned
_NAME = re.compile(r"[0-9]{12}-[0-9a-f]{8}")


class SegmentMissing(Exception):
    """A file of a segment is gone: either a newer state has replaced it, or it is lost."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows and their vectors.

    Attributes:
        name: file name without ending.
        rows: row numbers, sorted, shape (n,).
        vectors: unit vectors, shape (n, dim); dim 0 without an encoder.
        approximate: an index over them, None to search exactly.
        halves: for an exact search of few queries, None where there are few vectors or an index.
        check: of the vectors' file, where that is not finished when it is opened.
    """

    name: str
    rows: Rows
    vectors: Vectors
    approximate: Approximate | None = None
    halves: Halves | None = None
    check: Check | None = None

    def __len__(self) -> int:
        return len(self.rows)


def write_segment(folder: Path, rows: Rows, vectors: Vectors) -> SegmentRecord:
    """Write a segment and return its record. It means nothing until the catalogue has committed that record."""
    name = f"{int(rows[0]):012d}-{secrets.token_hex(4)}"
    sums = [
        _write(folder / f"{name}.{part}.npy", array)
        for part, array in (("rows", rows.astype("<i8")), ("vectors", vectors.astype("<f4")))
    ]
    sync_folder(folder)
    return SegmentRecord(name, int(rows[0]), len(rows), vectors.shape[1], *sums)


def open_segment(folder: Path, record: SegmentRecord, *, patient: bool = False) -> Segment:
    """Map a segment's files after checking them against the catalogue.

    Args:
        folder: of the segments.
        record: from the catalogue.
        patient: check even large files before returning.

    Raises:
        SegmentMissing: a file is not there.
        StoreError: a file is damaged, names the file.
    """
    if not _NAME.fullmatch(record.name):
        raise StoreError(f"{folder}: the catalogue names a segment {record.name!r}, which is no segment's name")
    arrays = []
    running: Check | None = None
    for part, digest, dtype, shape in (
        ("rows", record.rows_sha256, "<i8", (record.count,)),
        ("vectors", record.vectors_sha256, "<f4", (record.count, record.dim)),
    ):
        path = folder / f"{record.name}.{part}.npy"
        try:
            check, size = check_of_file(path, digest)
            if patient or part == "rows" or size < LARGE:
                check.finish()
            else:
                running = check
                running.start()
            array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
        except FileNotFoundError as error:
            raise SegmentMissing(str(path)) from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise StoreError(f"{path} holds {array.dtype} {array.shape}, the catalogue says {dtype} {shape}")
        arrays.append(array)
    approximate = load(folder.parent / INDEXES, record.name, (record.count, record.dim))
    vectors = np.asarray(arrays[1])
    halves = Halves(vectors) if approximate is None and record.dim and record.count >= LEAST else None
    return Segment(record.name, np.asarray(arrays[0]), vectors, approximate, halves, running)


def remove_strangers(folder: Path, known: set[str]) -> None:
    """Delete segment files that no committed state names: left-overs of a process that died, or replaced ones."""
    indexes = folder.parent / INDEXES
    for path in [*folder.iterdir(), *(indexes.iterdir() if indexes.is_dir() else ())]:
        name = path.name.split(".", 1)[0]
        if name not in known and _NAME.fullmatch(name):
            path.unlink(missing_ok=True)


def search(
    queries: Vectors, segment: Segment, k: int, allowed: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nearest neighbours in a segment, by its index where it has one and where that finds enough.

    Args:
        queries: shape (n, dim).
        segment: what to search.
        k: at most this many.
        allowed: positions that may be returned, sorted; None for all.

    Returns:
        cosines to six digits and positions, both of shape (n, min(k, allowed)), best first, equal ones in order of
        position.

    Raises:
        StoreError: the file of the vectors has been found damaged.
    """
    if segment.check is not None:
        segment.check.so_far()
    count = len(segment) if allowed is None else len(allowed)
    k = min(k, count)
    if k == 0 or segment.vectors.shape[1] == 0:
        return np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    positions = None
    if segment.approximate is not None and count > max(_EXACT if allowed is not None else 0, 4 * k):
        positions = segment.approximate.candidates(queries, k, allowed)
        if ((positions >= 0).sum(axis=1) < k).any():
            positions = None
    elif segment.halves is not None and allowed is None and k < count and len(queries) < _FEW:
        positions = segment.halves.candidates(queries, k)
    if positions is None:
        positions = nearest(queries, segment.vectors, k + _SPARE, allowed)
    # Products in float32 differ in their last digits between one query and many, so candidates are compared anew.
    cosines = np.empty(positions.shape)
    for cosine, query, at in zip(cosines, queries.astype(np.float64), positions, strict=True):
        np.dot(segment.vectors[at].astype(np.float64), query, out=cosine)  # -1 is the last one, and overwritten below
    cosines = cosines.round(6)
    cosines[positions < 0] = -np.inf
    order = np.lexsort((positions, -cosines))[:, :k]
    each = np.arange(len(queries))[:, None]
    return cosines[each, order], positions[each, order]


def nearest(queries: Vectors, vectors: Vectors, k: int, allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Nearest neighbours by inner product, by looking at every vector.

    Args:
        queries: shape (n, dim).
        vectors: shape (m, dim).
        k: at most this many.
        allowed: positions that may be returned, sorted; None for all.

    Returns:
        positions, shape (n, min(k, allowed)), in any order.
    """
    if allowed is None:
        _, positions = faiss.knn(queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        return np.asarray(positions, np.int64)
    if k >= len(allowed):
        return np.tile(allowed, (len(queries), 1))
    chosen = vectors[allowed] if 2 * len(allowed) < len(vectors) else None
    found = np.empty((len(queries), k), np.int64)
    block = max(1, _PRODUCTS // len(vectors))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        products = part @ chosen.T if chosen is not None else (part @ vectors.T)[:, allowed]
        found[start : start + block] = allowed[np.argpartition(-products, k - 1, axis=1)[:, :k]]
    return found


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power failure, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, array: NDArray[np.int64] | NDArray[np.float32]) -> str:
    try:
        with draft_of(path) as draft:
            np.save(draft, np.ascontiguousarray(array), allow_pickle=False)
            draft.seek(0)
            return hashlib.file_digest(draft, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or error  # numpy raises one without
        raise StoreError(f"{path} cannot be written: {reason}; the last complete state is kept") from error
